# make ner    train, evaluate and try a named-entity tagger
# make test   every check this project has
# make lab    the course in JupyterLab, from its start page
# make bench  fmtut timed against other training loops (under 20 minutes; ARGS="--threads 2")
# The first call builds .venv; nothing else has to be installed by hand.

PYTHON ?= python3
# What the registry holds under this name: on Linux usually the CUDA build, which runs on CPUs, too.
# The smaller CPU build, and how to choose: chapter 00. Another build: rm -rf .venv; make setup TORCH="torch>=2.6"
TORCH  ?= torch==2.13.0
OUT    ?= runs/ner
ARGS   ?=

BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
unexport PYTHONPATH

.PHONY: ner test check lab bench setup badges picture clean
.DEFAULT_GOAL := ner

ner: .venv/.ok
	@fmtut ner demo --out "$(OUT)" $(ARGS)

test: .venv/.ok
	@python tests/run.py test

check: .venv/.ok
	@python tests/run.py check

lab: .venv/.ok
	jupyter lab --notebook-dir=. nbs/index.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

# One thing at a time: with other programs at work it refuses (ARGS=--force: a provisional table).
bench: .venv/.ok
	@python -c 'import accelerate' 2>/dev/null || python -m pip install -q --disable-pip-version-check --use-pep517 -e ".[bench]"
	@python benchmarks/measure.py $(ARGS)

setup: .venv/.ok

# After a change of the address in settings.ini, and for a new notebook.
badges: .venv/.ok
	@python tests/badges.py

# The README's picture, from the stored results.
picture: .venv/.ok
	@python docs/picture.py

# Debian's python3 may lack venv and refuses `pip install`; virtualenv in a folder of its own works there.
# torch goes first and alone, so that no later requirement pulls in another build.
# --use-pep517: pip before 23.1 builds seqeval in an old way that today's setuptools breaks.
.venv/.ok: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fmtut needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv 2>/dev/null || \
	  { rm -rf .venv && $(PYTHON) -m pip install -q --target .tools virtualenv && \
	    PYTHONPATH=.tools $(PYTHON) -m virtualenv -q .venv; } || \
	  { echo "cannot make a virtual environment: install python3-venv or python3-pip"; exit 1; }
	@echo "installing into .venv (about two minutes)"
	@python -m pip install -q --disable-pip-version-check "$(TORCH)"
	@python -m pip install -q --disable-pip-version-check --use-pep517 -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv .tools runs build dist *.egg-info .pytest_cache .ruff_cache
