# `make demo` shows the zoo at work, `make test` checks it. Both set up everything they need first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-slow test-ray bench-ray docs node storm soak fuzz mutants bench bench-peers lint clean

demo: $(READY)
	$(BIN)/python -m zoo.demo

# One process more than cores, at most four; the tests of a file share one. In one process: `pytest -m "not slow"`.
test: $(READY) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow"

# Those of the scheduler, a third of the time, start no process: they run beside the others, on what these leave of the
# machine, and what they say follows at the end.
test-slow: $(READY)
	@said=$$(mktemp); \
	nice -n 19 $(BIN)/python -m pytest -m slow --timeout=1800 tests/scheduler > $$said 2>&1 & beside=$$!; \
	trap 'kill $$beside; rm -f $$said; exit 130' INT TERM; \
	$(BIN)/python -m pytest -m slow --timeout=900 --ignore=tests/scheduler; status=$$?; \
	wait $$beside || status=$$?; cat $$said; rm -f $$said; exit $$status

# Several nodes on this machine, in an environment of its own: nothing else here needs the engine.
RAY := .ray
test-ray: $(RAY)/.ready
	$(RAY)/bin/python -m pytest -W ignore tests/ray

bench-ray: $(RAY)/.ready
	$(RAY)/bin/python -W ignore -m benchmarks.nodes_live

$(RAY)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[ray]' \
	  pytest pytest-timeout hypothesis
	@touch $@

# The documentation as a site: .site/html/index.html. A link that leads nowhere fails it.
docs: $(READY)
	$(BIN)/python -m docs.site

# What the client in JavaScript needs, for tests/client/test_node.py; without it that test is skipped. No scripts run: the
# package brings its libraries along.
node:
	mkdir -p .node
	cp tests/node/package.json .node/
	cd .node && npm install --ignore-scripts --no-package-lock --no-audit --no-fund --silent

SEED    ?= 1
SECONDS ?= 60
CASES   ?= 1000000

storm: $(READY)
	$(BIN)/python -m tests.storm.storm --seed $(SEED) --seconds $(SECONDS)

# Does anything grow? An hour by default: make soak SOAK=600 is a short one.
SOAK ?= 3600
soak: $(READY)
	$(BIN)/python -m benchmarks.soak $(SOAK)

fuzz: $(READY)
	ZOO_FUZZ_SEED=$(SEED) ZOO_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest --timeout=7200 tests/fuzz

# Do the tests of the scheduler notice small changes to it? COUNT of them, drawn by SEED, and a report at the end. The
# tool has a virtual environment of its own.
COUNT ?= 200
mutants: $(READY)
	test -x .mutants/bin/cosmic-ray || { $(PYTHON) -m venv .mutants && \
	  $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["mutants"])' \
	  | xargs .mutants/bin/python -m pip install --quiet --disable-pip-version-check; }
	.mutants/bin/python tests/mutants.py --python $(BIN)/python --seed $(SEED) --count $(COUNT)

bench: $(READY)
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.camera
	$(BIN)/python -m benchmarks.swap
	$(BIN)/python -m benchmarks.warm
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.replay
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.turns
	$(BIN)/python -m benchmarks.gateway

# The zoo beside other servers (docs/peers.md): about 8 minutes, and 10 more and 4 GB for their environments the first
# time. One that cannot be installed is reported as missing. QUICK=--quick: fewer rounds, and nothing is written.
PEERS := $(patsubst benchmarks/peers/%.txt,.peers/%/.ready,$(wildcard benchmarks/peers/*.txt))
bench-peers: $(READY) $(PEERS)
	$(BIN)/python -m benchmarks.peers.run $(QUICK)

# The libraries of the models are the zoo's own, so that all run the same; a peer's own packages come before them.
.peers/%/.ready: benchmarks/peers/%.txt $(READY)
	-$(PYTHON) -m venv $(@D) && \
	  $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $< && \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_zoo.pth" && touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two packages bring the same cv2; the headless one needs no system libraries, so it is put on top where the
# other one's (libGL) are missing.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(BIN)/python -m pip install --quiet --force-reinstall --no-deps \
	  "$$(grep '^opencv-python-headless==' requirements.lock)"
	@touch $(READY)

clean:
	rm -rf $(VENV) .demo demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .node .mutants $(RAY) .site .peers
