# make demo                 a cluster trains while a node joins, one drains and one is killed whole
# make test                 everything that must hold
# make test-long            what must hold too and takes minutes: rolling restarts, plans that come true
# make lint                 style, types and layers alone
# make sim SEEDS=2000       the core in a simulated cluster under seeded faults
# make ablations            the same with one safeguard taken out at a time: each must be caught
# make audit                linters, types, bandit, unit files, secrets and bad input: one JSON object
# make fuzz SECONDS=300     search for bytes that break the wire, then the checkpoints
# make chaos MINUTES=30     real processes under kill -9, cut links, a paused etcd and more
# make compare              every strategy on two tasks, calm and with a node killed and one joined
# make picture              local SGD and the codecs: loss against the bytes that a worker has sent
# make bench                the data plane beside its limits and its peers: tables, and one JSON object
# make bench-scaling        step time by workers, servers, sizes and blocks: docs/images/scaling.png
# make bench-quick          a minute: a few ratios, none below half of what is recorded
# make bench-checkpoint     what a checkpoint costs the training, and that none is lost or damaged
# make bench-data           one worker slowed 4x: leased and static beside the ideal; samples counted
#
# A fresh machine needs Python >= 3.11 and make; the rest comes from pip into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PLUGINS := $(sort $(wildcard plugins/*))
PYTEST_ARGS ?=
JOBS ?= 3
SEEDS ?= 2000
FIRST ?= 0
MINUTES ?= 5
SECONDS ?= 300
SEED ?= 1
BENCH_ARGS ?=

.PHONY: compiled demo test test-plugins test-long lint sim ablations audit fuzz chaos compare \
	picture bench bench-scaling bench-quick bench-checkpoint bench-data clean setup

setup: $(READY)

# Hundreds of processes import it: where PYTHONDONTWRITEBYTECODE is set, each would compile it anew.
compiled: $(READY)
	@$(BIN)/python -m compileall -q -j 0 elasticps

demo: compiled
	@$(BIN)/python examples/demo/demo.py

ifeq ($(PYTEST_ARGS),)
# Chaos measures times: beside it goes only what takes the time that it leaves. Then files go to
# processes in their order, so that those that share a cluster find it there.
test: compiled
	nice -n 19 $(MAKE) lint test-plugins & beside=$$!; \
		$(BIN)/python -m pytest -m "not long" tests/chaos || failed=$$?; \
		wait $$beside && exit $${failed:-0}
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder \
		--ignore tests/chaos -m "not long" --durations 15 tests
else
test: compiled
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

test-plugins: $(READY)
	printf '%s\n' $(PLUGINS) | xargs -P $(JOBS) -I PLUGIN $(BIN)/python -m pytest -q PLUGIN

test-long: compiled
	$(BIN)/python -m pytest --durations 0 -m long tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sim: $(READY)
	@$(BIN)/elasticps sim --seeds $(SEEDS) --first $(FIRST)

ablations: $(READY)
	@$(BIN)/elasticps sim --ablate all

audit: $(READY)
	@$(BIN)/python -m tests.audit

fuzz: $(READY)
	@$(BIN)/python -m tests.fuzz wire --seconds $(SECONDS)
	@$(BIN)/python -m tests.fuzz checkpoint --seconds $(SECONDS)

chaos: compiled
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

compare: $(READY)
	@$(BIN)/python benchmarks/compare/compare.py

picture: $(READY)
	@$(BIN)/python benchmarks/compare/picture.py

bench-checkpoint: $(READY)
	@$(BIN)/python benchmarks/checkpoint.py

# A peer that cannot be installed is named in the table, and the others are measured.
bench: $(READY)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]' \
		|| echo "not all of the peers' packages can be installed here"
	$(BIN)/python -m benchmarks.replication
	$(BIN)/python -m benchmarks.codecs
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-scaling: $(READY)
	$(BIN)/python -m benchmarks.scaling

bench-quick: compiled
	@$(BIN)/python -m benchmarks --quick

bench-data: $(READY)
	@$(BIN)/python benchmarks/data.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# ensurepip is a package of its own on Debian and Ubuntu: where it is missing, the machine's pip
# fills an environment that was made without one.
$(READY): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "elasticps needs Python 3.11 or newer; say which: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
		|| { $(PYTHON) -m venv --without-pip --clear $(VENV) \
			&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
		|| { echo "no venv and no pip: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PLUGINS:%=--editable %)
	@touch $@
