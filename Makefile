# Everything here needs Python 3.11 or later and make, nothing else; it all stays inside this directory.
# ARGS="…" is passed on: make test ARGS="-k backoff -x", make demo ARGS="--help".

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format bench bench-quick clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PYTHON ?=
ARGS ?=
# For the second program of make bench, which compares with the peers; ARGS are for its first.
PEERS_ARGS ?=
# Tests run in two processes, each with servers of its own; WORKERS=0 runs them in one, for a debugger.
WORKERS ?= 2

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## a database, producers and the daemon, to watch it work
	@$(BIN)/outboxd demo $(ARGS)

test: $(READY) ## all tests, against a real PostgreSQL and Valkey that are started for them
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope $(ARGS)

check: $(READY) ## ruff, mypy and the rules on who may import whom
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## format the code and mend what ruff can mend
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: $(READY) ## every figure of bench/README.md, on this machine: beside the floor, then beside the peers (an hour and a quarter)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[bench]'
	@failed=; \
	$(BIN)/python -m bench --to bench/results/latest.json $(ARGS) || { failed=$$?; [ $$failed -eq 1 ] || exit $$failed; }; \
	$(BIN)/python -m bench.peers --to bench/results/latest-peers.json $(PEERS_ARGS) && \
	$(BIN)/python -m bench.plots bench/results/latest-peers.json && exit $$failed

bench-quick: $(READY) ## the figures of the drain with smaller loads, beside the floor, in under two minutes
	@$(BIN)/python -m bench drain finding waiting failing latency --quick --rounds 2 $(ARGS)

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew when pyproject.toml changes. The stamp is written last: an interrupted installation is repeated.
$(READY): pyproject.toml
	@rm -f $@
	@set -e; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		$(find_python); \
		echo "creating $(VENV) with $$("$$python" --version)" >&2; \
		"$$python" -m venv --clear $(VENV); \
	fi
	@echo "installing outboxd and its test tools into $(VENV); the first time this takes half a minute" >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[test]'
	@touch $@

# Sets $python, or says what is missing.
define find_python
python=; incomplete=; \
for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python=$$candidate; break; fi; \
	incomplete=$$candidate; \
done; \
if [ -z "$$python" ] && [ -n "$$incomplete" ]; then \
	echo "$$incomplete has no venv or ensurepip module. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	exit 1; \
elif [ -z "$$python" ]; then \
	echo "outboxd needs Python 3.11 or later, and none was found (tried: python3, python3.11 to python3.14)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1; \
fi
endef
