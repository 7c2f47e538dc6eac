# Everything a newcomer needs: `make demo`, `make test`. The environment in .venv is made and kept up to date by itself.
#
#   make demo              three cycles of the loop, then it stays up until Ctrl-C
#   make demo EXIT=1       ends by itself: status 0 improved, 1 did not improve, 2 error
#             SEED=3 SET="ppo.learning_rate=0 raters.taste=random" DEMO_HOME=/somewhere
#   make check             lint and the fast tests: before every commit
#   make ci                the whole check on a clean clone of HEAD, by .ci/run
#   make test              within 8 minutes on 2 cores        make test ARGS="-k freeze -x" JOBS=4
#   make test-slow         what takes longer, within 20       make test-long: what takes longer than CI has
#   make lint, make bench, make mutants
#
#   make PYTHON=python3.12 ...                                            another Python, 3.11 or newer
#   make PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" ...   the CPU build of torch

# GNU make ends with 2 whatever the status of a recipe, except in question mode, where a status of 1 is passed on.
# There only lines that begin with + are run, so those of the demo and of the environment do.
ifneq ($(filter demo,$(MAKECMDGOALS)),)
MAKEFLAGS += -q
endif

SHELL := /bin/sh
# Relative on purpose: the checkout's own path may hold spaces.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHON ?=
PIP_ARGS ?=
JOBS ?= 2
ARGS ?=
SET ?=
SEED ?=
EXIT ?=
DEMO_HOME ?=

# An environment that was made in another place imports the code from there.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help install demo check ci test test-slow test-long lint bench mutants clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n 1,13p

install: $(STAMP)

# Half an environment, or one of another place or Python, is made anew. The first Python that is new enough is taken.
$(STAMP): pyproject.toml constraints.txt
	+@$(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  rm -rf $(VENV); \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$python; break; fi; done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 or newer with venv found; name one: make PYTHON=/path/to/python3.12" >&2; exit 2; fi; \
	  echo "making $(VENV) with $$($$found --version)"; $$found -m venv $(VENV) || exit 2; }
	+@echo "installing; the first time this downloads some hundred megabytes"
	+@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[test]' || exit 2
	+@pwd > $(STAMP)

demo: $(STAMP)
	+@$(if $(DEMO_HOME),ORCHESTRATOR_HOME='$(DEMO_HOME)') exec $(PY) -m orchestrator.cli demo \
	  $(if $(EXIT),--exit) $(if $(SEED),--seed $(SEED)) $(foreach setting,$(SET),--set '$(setting)')

check: lint test

# It makes a clone and an environment of its own.
ci:
	exec .ci/run

# In the order in which they are found: by the number of their tests, the longest files of all would begin last.
test: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not long and not gpu" $(ARGS)

test-slow: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "slow and not long and not gpu" $(ARGS)

test-long: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "long and not gpu" $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP)
	BENCH_PIP_ARGS='$(PIP_ARGS)' $(PY) -m benchmarks $(ARGS)

# Cosmic Ray, which makes the mutants, is an extra of its own.
mutants: $(STAMP)
	$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[test,mutants]'
	$(PY) -m benchmarks.mutants $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
