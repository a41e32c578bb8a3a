# make test       set up .venv if need be, then the tests (CPU, offline)
# make test-all   the same and the slow proofs
# make demo       easy-VQA end to end: pretrain, fine-tune three MLLMs, evaluate, one table
# make lint       ruff
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: test test-all demo lint setup
setup: $(STAMP)

# torch comes first and pinned: a resolver that meets an unpinned torch may pull gigabytes of CUDA.
# A machine whose own Python has a CUDA torch keeps it: the environment then sees the system's packages.
$(STAMP): requirements.txt requirements-nodeps.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	@if $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  echo "keeping the CUDA torch of this machine"; $(PYTHON) -m venv --system-site-packages $(VENV); \
	else $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

# timm and torchvision stand on the path for one file alone: they change which processors transformers picks.
test-all: $(STAMP) .peers/.installed
	$(BIN)/python -m pytest
	PYTHONPATH=.peers $(BIN)/python -m pytest tests/llava_plugin/test_peers.py

.peers/.installed: requirements-peers.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .peers -r requirements-peers.txt
	@touch $@

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash demo.sh

lint: $(STAMP)
	$(BIN)/python -m ruff check .
