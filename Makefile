# make demo: from nothing to a report. make test: the suite. Both set up .venv first, once.
# make test-browser: dashboard and report in a chromium, where there is one (Debian: apt-get install chromium).
# make screenshots: the README's pictures, from a study that is made for them.
# make docs: the documentation as a site in build/docs. make figures: its figures and tables, from committed records.
# make test-all: the slow tests too, which install other environments, and those of services; many minutes more.
# make test-services: workers on a PostgreSQL server, cells on Dask and Ray, processes that hold shards; what is not
#   installed is skipped.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled on all cores afterwards: pip does it on one, for half of the installation's time.
INSTALL := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt
# A file's tests share fixtures and stay on one core; a model is too small for a second thread.
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-services test-browser test-systems screenshots docs figures style bench clean

demo: $(VENV)/.demo
	$(BIN)/autodisc demo

test: $(VENV)/.test
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(VENV)/.services
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not browser'

test-services: $(VENV)/.services
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'services and not slow' -rs tests/services tests/comparison tests/distillation tests/search

test-browser: $(VENV)/.browser
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m browser -rs tests/browser

# The last two at once: both wait more than they compute.
test-systems: $(VENV)/.systems
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m '(services or browser) and not slow' -rs tests/browser tests/services tests/comparison tests/distillation tests/search

screenshots: $(VENV)/.browser
	$(BIN)/python docs/screenshots.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: $(VENV)/.demo
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/results.py
	$(BIN)/python docs/settings.py

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
$(VENV)/.browser: extras = browser
$(VENV)/.docs: extras = docs
$(VENV)/.style: extras = style
# Several sets at once, for who wants them all: pip looks at everything each time.
$(VENV)/.checks: extras = demo,test,style,docs
$(VENV)/.checks: stamps = $(VENV)/.test $(VENV)/.style $(VENV)/.docs
$(VENV)/.systems: extras = demo,test,services,browser
$(VENV)/.systems: stamps = $(VENV)/.services $(VENV)/.browser
$(addprefix $(VENV)/.,demo test services browser docs style checks systems): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing autodisc[$(extras)] into $(VENV), a few minutes the first time ..."
	$(INSTALL) -e '.[$(extras)]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages hold files for other Pythons
	@touch $@ $(stamps)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
