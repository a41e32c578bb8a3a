# make test       set up .venv if need be, then the tests (CPU, offline)
# make test-all   the same and the slow proofs
# make demo       the mini world end to end: pretrain, fine-tune three MLLMs, evaluate on 14 benchmarks, one table
# make demo-easyvqa  the same chain on a public data set of shapes
# make demo-real  the same chain with SmolLM2-135M, partial rows; long without a GPU
# make lint       ruff, and types
# make docs       the pages as a site in build/docs; a broken link or anchor fails
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BEGUN := $(VENV)/.begun
TORCH := torch==2.13.0
NODEPS := eval_suites/requirements-nodeps.txt
ROOM := 4
# Two workers, a thread each; a file's tests stay together and in order, for what they share. make test SIDE= runs them one by one.
SIDE := -n 2 --dist loadfile
# Modules are compiled when they are first imported: all of them at once is half of the set-up, and most are never asked for.
PIP := --quiet --disable-pip-version-check --no-compile
MENDS := echo "set-up stopped: see pip's words above. A package index is needed, $(ROOM) GB of disk, and a compiler (apt-get install build-essential) where a package has no wheel for this Python; then the same command again" >&2; exit 1

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: test test-all demo demo-easyvqa demo-real lint docs setup
setup: $(STAMP)

# torch comes first and pinned: a resolver that meets an unpinned torch may pull gigabytes of CUDA.
# A machine whose own Python has a CUDA torch keeps it: the environment then sees the system's packages.
# An environment that a stop left half-made (begun by this rule, or without a pip that runs) is made anew; one that a user made is kept,
# and so is what a symbolic link leads to.
$(STAMP): requirements.txt $(NODEPS) pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON) here: install Python 3.11 or newer, or make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s: make PYTHON=python3.11 ..." % sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "this Python makes no environments: apt-get install python3-venv, or make PYTHON=python3.11 ..." >&2; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 {print int($$4 / 1048576)}'); [ -e $(STAMP) ] || [ "$$free" -ge $(ROOM) ] || \
	  { echo "$$free GB are free here and the environment takes $(ROOM): free some, or put the checkout on a larger disk" >&2; exit 1; }
	@clear=; if [ -d $(VENV) ] && [ ! -L $(VENV) ] && { [ -e $(BEGUN) ] || ! $(BIN)/python -m pip --version > /dev/null 2>&1; }; then \
	  echo "$(VENV) is half-made: made anew" >&2; clear=--clear; fi; \
	mkdir -p $(VENV) && if $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  echo "keeping the CUDA torch of this machine"; $(PYTHON) -m venv $$clear --system-site-packages $(VENV) && touch $(BEGUN); \
	else $(PYTHON) -m venv $$clear $(VENV) && touch $(BEGUN) && $(BIN)/python -m pip install $(PIP) $(TORCH); fi || { $(MENDS); }
	@echo "installing into $(VENV): minutes"; $(BIN)/python -m pip install $(PIP) -r requirements.txt || { $(MENDS); }
	@$(BIN)/python -m pip install $(PIP) --no-deps -r $(NODEPS) || { $(MENDS); }
	@$(BIN)/python -m pip install $(PIP) --no-deps --no-build-isolation -e . || { $(MENDS); }
	@touch $(STAMP) && rm -f $(BEGUN)

test: $(STAMP)
	$(BIN)/python -m pytest $(SIDE) -m "not slow"

# timm and torchvision stand on the path for one file alone: they change which processors transformers picks.
test-all: $(STAMP) .peers/.installed
	$(BIN)/python -m pytest $(SIDE)
	PYTHONPATH=.peers $(BIN)/python -m pytest tests/llava_plugin/test_peers.py

.peers/.installed: requirements-peers.txt $(STAMP)
	$(BIN)/python -m pip install $(PIP) --no-deps --upgrade --target .peers -r requirements-peers.txt
	@touch $@

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

demo-easyvqa: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo_easyvqa.sh

demo-real: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo_real.sh

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python tests/check_types.py

# -W: a warning fails; -E: every page is read anew, so that none hides in a cache.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -E -q -d build/docs-trees docs build/docs
	@echo "build/docs/index.html"
