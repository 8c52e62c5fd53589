# make demo    sets everything up and trains, evaluates, saves and questions a small Parrot (QUICK=1: under 2 minutes)
# make test    sets everything up and runs the quick suite (SLOW=1: the slow tests too)
# make lint    ruff and mypy
# PYTHON chooses the interpreter, e.g. `make demo PYTHON=python3.12`; an own environment goes into .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint clean

# torch first and from the constraints, so that nothing else chooses another build of it.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "Installing torch (the largest part, some minutes on a slow line) ..."
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@echo "Installing modeling-parrot and its tools ..."
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(VENV)/ready
	$(RUN) examples/emoji/demo.py $(if $(QUICK),--quick)

test: $(VENV)/ready
	$(RUN) -m pytest $(if $(SLOW),,-m "not slow")
	@echo "The tests passed. Nothing was left behind but the environment in $(VENV)."

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) outputs
