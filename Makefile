# Two commands: `make train` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
PACKAGES := core $(sort $(wildcard plugins/*))
PROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES))

.PHONY: help train test check bench wheels clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*##/make \1 \t/p' $(MAKEFILE_LIST)

train: $(VENV)/.run  ## train a small language model: early stopping, gradient monitor, snapshots
	$(BIN)/train-lm --early_stopping --gradient_monitor --snapshot_interval 500

test: $(VENV)/.dev  ## run every test
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addsuffix /src,$(PACKAGES))
	$(BIN)/python tests/check_types.py

wheels: $(VENV)/.dev  ## build every wheel, and try them in an empty environment
	$(BIN)/python tests/check_wheels.py dist

bench: $(VENV)/.dev  ## measure, side by side with others
	$(BIN)/python benchmarks/run.py

clean:  ## remove what these commands made
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python $(PROJECTS) constraints.txt
	$(PIP) $(addprefix -e ./,$(PACKAGES))
	touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PIP) -e "./core[hf,data]" --group dev
	touch $@
