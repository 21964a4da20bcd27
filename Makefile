# make demo: from nothing to a report. make test: the suite. Both set up .venv first, once.
# make test-all: the slow tests too, which install other environments; minutes more.
# make test-services: workers on a PostgreSQL server, cells on Dask and Ray; what is not installed is skipped.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all test-services style bench clean

demo: $(VENV)/.demo
	$(BIN)/autodisc demo

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-all: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not services'

test-services: $(VENV)/.services
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m services -rs tests/services

style: $(VENV)/.style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# make bench TEACHER=teachers/mrpc TASK=mrpc DATA=data/mrpc STUDENT=runs/mrpc/student THREADS=1
# What has no inputs is skipped with a line; speed.py alone needs none of them: make bench RANDOM_BASE=1
bench: threads = $(if $(THREADS),--threads $(THREADS))
bench: inputs = --teacher "$(TEACHER)" --task "$(TASK)" --data "$(DATA)" $(threads)
bench: $(VENV)/.demo
	@$(BIN)/python benchmarks/speed.py $(if $(RANDOM_BASE),--random-base $(threads),$(inputs))
	@$(if $(and $(TEACHER),$(TASK),$(DATA)),$(BIN)/python benchmarks/pruning.py $(inputs),echo "pruning.py skipped: it takes TEACHER, TASK and DATA")
	@$(if $(and $(TEACHER),$(STUDENT)),$(BIN)/python benchmarks/latency.py --teacher "$(TEACHER)" --student "$(STUDENT)" $(threads),echo "latency.py skipped: it takes TEACHER and STUDENT")

# A stamp a set of extras: installed again only when what is installed has changed.
$(VENV)/.demo: extras = demo
$(VENV)/.test: extras = demo,test
$(VENV)/.services: extras = demo,test,services
$(VENV)/.style: extras = style
$(VENV)/.demo $(VENV)/.test $(VENV)/.services $(VENV)/.style: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing autodisc[$(extras)] into $(VENV), a few minutes the first time ..."
	$(INSTALL) -e '.[$(extras)]'
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
