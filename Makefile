# memwarden: one entry point. `make help` says what it can do.
# Needs Python >= 3.11 and make; everything else goes into its own folder, .venv.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { command -v $$p; exit; }; done; echo python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
STAMP  := $(VENV)/.ready
DOCS   := $(VENV)/.docs
TESTS  ?= tests
# Two at a time, a file as a whole: much of what the tests do is waiting, for kernels, kills and servers.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test fast lint bench soak docs api lock clean

help:  ## what you can type
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -e 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

$(STAMP): requirements/test.txt pyproject.toml setup.py $(wildcard src/memwarden/_native/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "memwarden needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements/test.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q src
	@touch $@

$(DOCS): requirements/docs.txt $(STAMP)
	@$(PIP) install --require-hashes -r requirements/docs.txt
	@touch $@

demo: $(STAMP)  ## a real web service and a job kept inside their limits, in about a minute
	@$(BIN)/python examples/crm/demo.py

test: $(STAMP)  ## style, types, architecture, and every test
	@$(MAKE) --no-print-directory lint
	$(PYTEST) $(TESTS)

fast: $(STAMP)  ## the tests that need no server, no kill and no second kernel
	$(PYTEST) -m "not kernel and not uml and not server" $(TESTS)

lint: $(STAMP)  ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)  ## every figure of the README, measured on this machine
	$(BIN)/python -m benchmarks

soak: $(STAMP)  ## the long proofs: a million ticks, a hundred kills, ten million fuzzed inputs
	MEMWARDEN_SOAK=1 $(BIN)/python -m pytest --timeout=7200 $(TESTS)

docs: $(DOCS)  ## the documentation, into docs/_build
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

api: $(STAMP)  ## rewrite api.txt, the snapshot of the public names
	$(BIN)/python -m tests.api_snapshot > api.txt

lock: $(STAMP)  ## pin the newest development dependencies (needs uv)
	cd requirements && for f in test docs bench; do uv pip compile --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header -q --upgrade $$f.in -o $$f.txt; done

clean:  ## remove what the targets above made
	rm -rf $(VENV) build dist docs/_build .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
