# make demo    a cluster trains while a node joins, one drains and the leader is killed
# make test    everything that must hold
# make lint    style, types and layers alone
# make bench   the data plane beside a bare socket
#
# A fresh machine needs Python >= 3.11 and make; the rest comes from pip into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=

.PHONY: demo test lint bench clean setup

setup: $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo/demo.py

test: $(READY) lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	$(BIN)/python -m pytest $(PYTEST_ARGS) plugins/elasticps-lion

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/wire.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# ensurepip is a package of its own on Debian and Ubuntu: where it is missing, the machine's pip
# fills an environment that was made without one.
$(READY): pyproject.toml constraints.txt plugins/elasticps-lion/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "elasticps needs Python 3.11 or newer; say which: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
		|| { $(PYTHON) -m venv --without-pip --clear $(VENV) \
			&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
		|| { echo "no venv and no pip: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable plugins/elasticps-lion
	@touch $@
