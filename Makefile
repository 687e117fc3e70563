# make demo, make test and make lint create .venv themselves and need nothing but Python >= 3.11.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
WORKERS ?= 2

# One thread per process: runs and tests are spread over processes instead.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test bench notebooks lint format clean

help:
	@echo "make demo    train, track, analyse and draw on real images with wrong labels (a few minutes)"
	@echo "make test    the whole test suite"
	@echo "make bench   time every method against a loop, vmap and Opacus; writes benchmarks/"
	@echo "make notebooks   run the notebooks and store what they show"
	@echo "make lint    ruff and pyright"
	@echo "make format  let ruff rewrite the code"
	@echo "make clean   remove .venv and caches; saved runs stay"

demo: $(VENV)/.noisesam
	$(BIN)/noisesam demo --workers $(WORKERS)

test: $(VENV)/.noisesam-dev
	$(BIN)/python -m pytest -n $(WORKERS)

# Opacus, one of the contenders, comes with the test extra.
bench: $(VENV)/.noisesam-dev
	$(BIN)/noisesam bench --out benchmarks

# What runs them comes with the test extra; the notebooks extra adds JupyterLab to read and change them.
notebooks: $(VENV)/.noisesam-dev
	$(BIN)/python notebooks/build.py

lint: $(VENV)/.noisesam-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.noisesam-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

# The stamps make the second call quick; a changed pyproject.toml or constraints.txt installs again.
$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "noisesam needs Python 3.11 or newer: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.noisesam: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.noisesam-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[test,lint]'
	@touch $@ $(VENV)/.noisesam
