# make help shows the targets. Everything is installed into $(VENV); nothing outside the repository is touched.
PYTHON ?= python3
VENV ?= .venv
ORACLE_VENV ?= .venv-oracles
FIT_VENV ?= .venv-fit
# What is installed beside the package itself: test, tpu, cuda, colab (comma-separated).
EXTRAS ?= test
# Options of the program that a target starts: make demo ARGS=..., make bench ARGS=...
ARGS ?=
# Processes that share the tests of make test and make long.
WORKERS ?= 2

comma := ,
READY := $(VENV)/.ready-$(notdir $(PYTHON))-$(subst $(comma),+,$(EXTRAS))
ORACLE_READY := $(ORACLE_VENV)/.ready-$(notdir $(PYTHON))
FIT_READY := $(FIT_VENV)/.ready-$(notdir $(PYTHON))
BIN := $(VENV)/bin
# The venv is kept where it is of the same Python, and made afresh where it is not.
VERSION = -c 'import sys; print(sys.version_info[:2])'

.PHONY: help setup demo test lint oracles fit bench kills long clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' "$(firstword $(MAKEFILE_LIST))" | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18
	@echo "  variables: PYTHON=$(PYTHON) VENV=$(VENV) EXTRAS=$(EXTRAS) WORKERS=$(WORKERS) ARGS=..."

setup: $(READY)  ## the environment in .venv (the other targets call this; done once)

$(READY): pyproject.toml constraints.txt
	@echo "== set-up: $(VENV) with $(PYTHON), scope_jax[$(EXTRAS)], versions of constraints.txt (two minutes, once)"
	@if [ "$$("$(BIN)/python" $(VERSION) 2>/dev/null)" != "$$("$(PYTHON)" $(VERSION))" ]; then \
	  "$(PYTHON)" -m venv --clear "$(VENV)"; fi
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch "$@"
	@echo "== set-up done"

demo: $(READY)  ## SCOPE beside GRPO on the embedded task, on this machine
	"$(BIN)/python" -m scope_jax.demo $(ARGS)

test: lint  ## lint, types, then every test but the long ones (needs no torch and no network)
	@echo "== pytest, $(WORKERS) workers"
	@"$(BIN)/python" -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(READY)  ## ruff and mypy
	@echo "== ruff check"
	@"$(BIN)/ruff" check .
	@echo "== ruff format --check"
	@"$(BIN)/ruff" format --check .
	@echo "== mypy"
	@"$(BIN)/mypy"

$(ORACLE_READY): pyproject.toml constraints.txt
	@echo "== set-up: $(ORACLE_VENV) with $(PYTHON) and torch"
	@if [ "$$("$(ORACLE_VENV)/bin/python" $(VERSION) 2>/dev/null)" != "$$("$(PYTHON)" $(VERSION))" ]; then \
	  "$(PYTHON)" -m venv --clear "$(ORACLE_VENV)"; fi
	@"$(ORACLE_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[oracle]"
	@touch "$@"
	@echo "== set-up done"

oracles: $(ORACLE_READY)  ## make the torch goldens afresh and compare (own environment, with torch)
	@echo "== goldens of tests/goldens, made afresh with torch and compared"
	@"$(ORACLE_VENV)/bin/python" tests/goldens/make_goldens.py --check
	@"$(ORACLE_VENV)/bin/python" tests/goldens/make_prm_goldens.py --check
	@echo "== the endpoint client against transformers serve"
	@"$(ORACLE_VENV)/bin/python" tests/endpoint_oracle.py

$(FIT_READY): pyproject.toml constraints.txt
	@echo "== set-up: $(FIT_VENV) with $(PYTHON) and the TPU's compiler (700 MB)"
	@if [ "$$("$(FIT_VENV)/bin/python" $(VERSION) 2>/dev/null)" != "$$("$(PYTHON)" $(VERSION))" ]; then \
	  "$(PYTHON)" -m venv --clear "$(FIT_VENV)"; fi
	@"$(FIT_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fit,test]"
	@touch "$@"
	@echo "== set-up done"

fit: $(FIT_READY)  ## compile for TPU slices without one: the environment of scope_jax.fit, and its tests
	@"$(FIT_VENV)/bin/python" -m pytest tests/fit $(ARGS)

bench: $(READY)  ## side by side with transformers + TRL and Tunix (makes their environments; about an hour)
	"$(BIN)/python" benchmarks/side_by_side.py $(ARGS)

kills: $(READY)  ## tiny runs killed at random moments until they finish, against undisturbed ones (minutes)
	@"$(BIN)/python" tests/kill_runs.py $(ARGS)

long: $(READY)  ## the tests that take long each
	@"$(BIN)/python" -m pytest -m long -n $(WORKERS) --dist worksteal $(ARGS)

clean:  ## remove the environments and the caches of the tools (runs/ and cache/ stay)
	rm -rf "$(VENV)" "$(ORACLE_VENV)" "$(FIT_VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis scope_jax.egg-info
