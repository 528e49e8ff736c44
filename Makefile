# All tasks of a developer. They need Python 3.11 or newer and make: the first target that needs .venv creates it with
# the locked packages.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that is new enough; name another with `make test PYTHON=python3.12`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
UV := $(BIN)/uv
READY := $(VENV)/.ready

# uv takes from the environment only how to reach PyPI and what it costs: an index or a folder of wheels that this
# machine prefers would end up in the lock that everybody installs from.
KEPT := UV_CACHE_DIR UV_CONCURRENT_% UV_HTTP_% UV_LINK_MODE UV_NATIVE_TLS UV_NO_CACHE UV_OFFLINE UV_SYSTEM_CERTS
unexport VIRTUAL_ENV $(filter-out $(KEPT),$(filter UV_%,$(.VARIABLES)))
export UV_NO_CONFIG := 1
export UV_PYTHON_DOWNLOADS := never
# Without the configuration, the settings in pyproject.toml do not count either.
export UV_FORK_STRATEGY := fewest

# pyright comes whole in its wheel and finds its node in another, so it has nothing to look up or to download.
export PYRIGHT_PYTHON_GLOBAL_NODE := off
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Folders may be missing in a checkout in the making, and the checkers refuse a path that does not exist.
TYPED := restate_steps $(wildcard tests/typing/api_*.py) $(wildcard examples) $(wildcard tests/chaos)

# More arguments for pytest, for example `make test ARGS="-k codec -x"`.
ARGS ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Create .venv with the locked packages (the other targets do it when needed)

$(PY):
	@if [ -z "$(PYTHON)" ]; then \
		echo "restate_steps needs Python 3.11 or newer, and python3 here is: $$(python3 --version 2>&1 || echo missing)." >&2; \
		echo "Install a newer one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) >$(VENV).log 2>&1 || $(PYTHON) -m virtualenv --clear $(VENV) >>$(VENV).log 2>&1 || { \
		cat $(VENV).log >&2; rm -rf $(VENV) $(VENV).log; \
		echo "$(PYTHON) cannot create a virtual environment. Install its venv module" >&2; \
		echo "(Debian and Ubuntu: apt-get install python3-venv), or virtualenv, and try again." >&2; exit 1; }
	@rm -f $(VENV).log

# The lock has the version and the hashes of uv as well.
$(UV): | $(PY)
	@$(PY) -c 'import tomllib; \
	[uv] = [each for each in tomllib.load(open("uv.lock", "rb"))["package"] if each["name"] == "uv"]; \
	print("uv==" + uv["version"], *("--hash=" + wheel["hash"] for wheel in uv["wheels"]))' >$(VENV)/uv.txt
	@$(PY) -m pip install -qq --only-binary :all: --require-hashes --no-deps -r $(VENV)/uv.txt

# Without isolation the package is built by the backend that is locked.
$(READY): uv.lock pyproject.toml | $(UV)
	@echo "Installing the locked packages (once)"
	@$(UV) sync --quiet --locked --no-build-isolation-package restate-steps || { \
		echo "If pyproject.toml asks for what uv.lock does not have, write the lock again: make lock" >&2; exit 1; }
	@touch $@

.PHONY: lint
lint: style types ## Check style, format and types

.PHONY: style
style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(READY)
	$(BIN)/mypy $(TYPED)
	$(BIN)/pyright --pythonpath $(PY)

.PHONY: format
format: $(READY) ## Fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Fetching it here, with a progress bar, keeps the download out of the time limit of the first test.
.PHONY: server
server: $(READY) ## Download the pinned restate-server, unless it is there
	@$(PY) -c "from restate_steps.server import ensure_server; print(ensure_server())"

# The number of processes that run the tests. A debugger needs 0: `make test WORKERS=0 ARGS="--pdb"`.
WORKERS ?= auto

# The tests run last, so that the line that closes the output is pytest's.
.PHONY: test
test: lint server ## Check everything and run all tests, on a real restate-server
	$(BIN)/pytest -n $(WORKERS) --dist=worksteal $(ARGS)

.PHONY: api
api: $(READY) ## Write the list of public names again (tests/public_api.txt)
	$(PY) -m tests.test_public_api

# Versions to test instead of the locked ones: `make matrix SDK=1.4.0 SERVER=1.8.0`.
SDK ?=
SERVER ?=

.PHONY: matrix
matrix: $(READY) server ## Test on every Python, with the oldest and newest dependencies, or with SDK= or SERVER=
	$(PY) -m tests.support.matrix $(if $(SDK),--sdk $(SDK)) $(if $(SERVER),--server $(SERVER)) $(ARGS)

.PHONY: record
record: server ## Record the real server again (tests/conformance; takes ten minutes)
	$(PY) -m tests.conformance.record $(ARGS)

.PHONY: demo
demo: $(READY) ## Kill a durable agent in the middle of a run, and watch it continue
	$(PY) examples/demo.py

.PHONY: bench
bench: $(READY) ## Measure the claims of the documentation
	$(PY) -m benchmarks

.PHONY: chaos
chaos: $(READY) ## Kill handlers and servers during many runs, and count the errors
	$(PY) -m tests.chaos $(ARGS)

# The duration and the seed. ARGS takes the names of what to explore; see tests/support/explore.py.
SECONDS ?= 120
SEED ?=

.PHONY: explore
explore: $(READY) ## Explore orders, crashes and cancellations for SECONDS, drawn from SEED
	$(PY) -m tests.support.explore --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

# -n and -W: a reference to nothing is an error, as is any other warning.
.PHONY: docs
docs: $(READY) ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W -n --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Built from a clean checkout, the files have the same bytes everywhere.
.PHONY: dist
dist: $(READY) ## Build the wheel and the source distribution into dist, for a release
	rm -rf dist
	$(UV) build --quiet --no-build-isolation
	@ls dist

# It must work when pyproject.toml asks for more than the lock has, so it needs uv and not the whole environment.
.PHONY: lock
lock: | $(UV) ## Update uv.lock; ARGS=--upgrade moves everything to the newest version
	$(UV) lock $(ARGS)

.PHONY: clean
clean: ## Remove the environments and all build results
	rm -rf $(VENV) .matrix build dist docs/_build .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
