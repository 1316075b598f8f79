# make run   a model of image quality from 300 rated photographs, and a report: Python and make are all it needs
# make test  everything that CI runs
# make test-all  that, and the tests marked `slow`
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
bin := $(VENV)/bin

.PHONY: install dev run test test-all lint sync readme docs pytest wheel write clean

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit("qponder needs Python 3.10 or newer: make PYTHON=/path/to/python3" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(bin)/python
	$(bin)/python -m pip install --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(bin)/python
	$(bin)/python -m pip install --editable '.[dev]'
	@touch $@ $(VENV)/.installed

run: install
	$(bin)/qponder run --preset nano

test: lint sync readme docs pytest wheel

test-all: test
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n $(JOBS) -m slow

lint: dev
	$(bin)/ruff check qponder tests nbs dev benchmarks

sync: dev
	$(bin)/python -m dev.sync

readme: dev
	$(bin)/python -m dev.readme --check
	$(bin)/python -m dev.cards --check

docs: dev
	$(bin)/python -m dev.docs

# One thread each: JOBS processes already fill the cores.
pytest: dev
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n $(JOBS) --dist worksteal --durations 10

wheel: dev
	$(bin)/python -m dev.wheel

# The other direction: after editing a notebook, write what `sync` and `readme` check.
write: dev
	$(bin)/nbdev-clean
	$(bin)/nbdev-export
	$(bin)/python -m dev.readme
	$(bin)/python -m dev.cards

clean:
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
