# make demo: from nothing to a report. make test: the whole suite. Both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test style bench clean

demo: $(VENV)/.demo
	$(BIN)/autodisc demo

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

style: $(VENV)/.style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.demo
	@for script in benchmarks/*.py; do [ ! -e "$$script" ] || $(BIN)/python "$$script" || exit 1; done

# A stamp a set of extras: installed again only when what is installed has changed.
$(VENV)/.demo: extras = demo
$(VENV)/.test: extras = demo,test
$(VENV)/.style: extras = style
$(VENV)/.demo $(VENV)/.test $(VENV)/.style: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing autodisc[$(extras)] into $(VENV), a few minutes the first time ..."
	$(INSTALL) -e '.[$(extras)]'
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
