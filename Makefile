# Two commands: `make train` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
OLDEST ?= python3.10
TESTS ?= tests
# One more than the two cores of CI: many tests wait for a process or a disk.
JOBS ?= 3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
PACKAGES := core $(sort $(wildcard plugins/*))
TRACKERS := $(addprefix plugins/,mlflow trackio wandb)
LEVELS ?= early_stopping ema gradient_monitor lr_finder mirror notify optuna profiler tensorboard \
	throughput
HOSTS := $(sort $(wildcard hosts/*))
PROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES))

define check_levels
failed=; for name in $(2); do \
	$(1)/trainer plugins check $$name --require gold || failed="$$failed $$name"; \
done; \
[ -z "$$failed" ] || { echo "not gold:$$failed"; exit 1; }
endef

.PHONY: help train test trackers hosts oldhosts try oldest check levels trackerlevels docs bench wheels clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*##/make \1 \t/p' $(MAKEFILE_LIST)

train: $(VENV)/.run  ## train a small language model: early stopping, gradient monitor, snapshots
	$(BIN)/train-lm --early_stopping --gradient_monitor --snapshot_interval 500

test: $(VENV)/.dev  ## run every test
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

# A session of these that has not ended in 20 minutes hangs: CI runs two at a time.
trackers: .venv-trackers/.trackers  ## the tests of MLflow, trackio and W&B, with their own clients
	timeout 1200 .venv-trackers/bin/python -m pytest -n $(JOBS) tests/trackers

hosts: .venv-hosts/.hosts  ## the tests of other trainers, with these; some minutes
	for name in hosts hosts_transformers hosts_lightning; do \
		timeout 1200 .venv-hosts/bin/python -m pytest -n $(JOBS) tests/$$name || exit 1; \
	done
	timeout 1200 .venv-hosts/bin/python -m pytest -n $(JOBS) -k test_it_decides_in_other_trainers \
		tests/testing/test_our_plugins.py tests/*/test_contract.py

oldhosts: .venv-oldhosts/.hosts  ## the same runs in the oldest of the other trainers that are declared
	for name in transformers lightning; do \
		timeout 1200 .venv-oldhosts/bin/python -m pytest -n $(JOBS) -W ignore::DeprecationWarning \
			tests/hosts_$$name/test_matrix.py || exit 1; \
	done

try: $(VENV)/.run  ## a short run with every plugin: does this Python do?
	$(BIN)/train-lm --max_steps 20 --early_stopping --gradient_monitor --ema --throughput \
		--tensorboard --mirror --mirror_url memory://tried --snapshot_interval 10 \
		--output_dir $(VENV)/tried --overwrite

oldest:  ## the tests with the oldest Python and the oldest libraries that are declared
	$(MAKE) PYTHON=$(OLDEST) VENV=.venv-oldest .venv-oldest/.oldest
	.venv-oldest/bin/python -m pytest -n $(JOBS) -W ignore::DeprecationWarning $(TESTS)

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addsuffix /src,$(PACKAGES) $(HOSTS))
	$(BIN)/python tests/check_types.py

levels: $(VENV)/.dev  ## whether each plugin but those of trackers is gold; half a minute each
	$(call check_levels,$(BIN),$(LEVELS))

trackerlevels: .venv-trackers/.trackers  ## the same of MLflow, trackio and W&B; some minutes
	$(call check_levels,.venv-trackers/bin,$(notdir $(TRACKERS)))

docs: $(VENV)/.docs  ## build the pages into docs/build; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going docs docs/build
	@echo "docs/build/index.html"

wheels: $(VENV)/.dev  ## build every wheel, and try them in an empty environment
	$(BIN)/python tests/check_wheels.py dist

bench: $(PEERS)/.peers  ## measure, side by side with others; about 15 minutes
	$(PEERS)/bin/python benchmarks/run.py

clean:  ## remove what these commands made
	rm -rf .venv .venv-* dist docs/build .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python $(PROJECTS) constraints.txt
	$(PIP) $(addprefix -e ./,$(filter-out $(TRACKERS),$(PACKAGES))) -e "./core[hf,report]"
	$(PIP) --no-deps $(addprefix -e ./,$(TRACKERS))
	touch $@

# The clients of trackers want other versions than constraints.txt has: MLflow an importlib-metadata
# before 10, for which pip would take an MLflow of years ago.
.venv-trackers/.trackers: $(PROJECTS) tests/trackers/constraints.txt
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet -c tests/trackers/constraints.txt \
		$(addprefix -e ./,core $(TRACKERS)) pytest pytest-timeout pytest-xdist
	touch $@

.venv-hosts/.hosts: $(PROJECTS) $(addsuffix /pyproject.toml,$(HOSTS)) tests/hosts/constraints.txt
	$(PYTHON) -m venv .venv-hosts
	.venv-hosts/bin/python -m pip install --quiet -c constraints.txt -c tests/hosts/constraints.txt \
		$(addprefix -e ./,$(filter-out $(TRACKERS),$(PACKAGES)) $(HOSTS)) -e "./core[data]" \
		"jsonargparse[signatures]" lightning peft torchdata trl build hatchling pytest pytest-timeout \
		pytest-xdist
	touch $@

.venv-oldhosts/.hosts: $(PROJECTS) $(addsuffix /pyproject.toml,$(HOSTS)) tests/hosts/oldest.txt
	$(PYTHON) -m venv .venv-oldhosts
	sed '/^tokenizers/d;/^accelerate/d' constraints.txt > .venv-oldhosts/constraints.txt
	.venv-oldhosts/bin/python -m pip install --quiet -c .venv-oldhosts/constraints.txt \
		-c tests/hosts/oldest.txt $(addprefix -e ./,$(filter-out $(TRACKERS),$(PACKAGES)) $(HOSTS)) \
		-e "./core[data]" lightning pytorch-lightning torchdata pytest pytest-timeout pytest-xdist
	touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PIP) -e "./core[data]" --group dev
	touch $@

$(VENV)/.oldest: $(VENV)/.dev tests/oldest.py
	$(BIN)/python tests/oldest.py > $(VENV)/oldest.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/oldest.txt
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) --group docs
	touch $@

# The other trainers, in an environment of their own. One that cannot be installed, or only with
# another torch, is left out: it is named here, and in the tables. fastai brings a torchvision that
# may be built for another torch; none of the benchmarks needs one.
$(PEERS)/.peers: benchmarks/peers.txt $(PROJECTS) constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt \
		$(addprefix -e ./,$(filter-out $(TRACKERS),$(PACKAGES)))
	for peer in $$(sed '/^#/d' benchmarks/peers.txt); do \
		$(PEERS)/bin/python -m pip install --quiet -c constraints.txt -c benchmarks/peers.txt \
			$$peer || echo "left out: $$peer"; \
	done
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@
