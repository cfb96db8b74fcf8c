# Everything that a newcomer types. Each target makes and reuses .venv by itself.
#
#   make demo                 videos -> report, at the size that params.yaml states
#   make demo SIZE=small      the same stages on a few clips, in runs/small (a minute or two)
#   PYTHON=python3.12 make …  another interpreter for .venv (3.11 to 3.13)
#   EXTRAS=pipeline,mmaction2 make …  what a run needs, without what tests need

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
SIZE ?= full
EXTRAS ?= test,dev
STAMP := $(VENV)/.installed
# DVC starts `python cli.py ...`: the environment's python has to be the first one found.
export PATH := $(BIN):$(PATH)
# Packages come uncompiled (see below): what a first import compiles has to stay.
unexport PYTHONDONTWRITEBYTECODE

# Compiling 236 packages takes a minute, and each is compiled when it is first imported anyway.
INSTALL := $(if $(shell command -v uv),uv pip install -q --python $(BIN)/python,$(BIN)/python -m pip install -qq --no-compile)

AXE_VERSION := 4.14.1
SMALL := runs/small
# COMPOSE FILE OVERRIDES...: compose configs/ into FILE, as `dvc exp run -S` does.
COMPOSE := python -c 'import os, sys; from dvc.utils.hydra import compose_and_dump; \
  configs = os.path.abspath("configs"); \
  compose_and_dump(sys.argv[1], configs, None, "config", configs, sys.argv[2:])'

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-full demo-small browser pictures test test-slow test-all lint format docs bench params clean

help:  ## Show this list
	@echo "Usage: make TARGET"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' \
	  | while IFS=$$'\t' read -r name text; do printf '  %-9s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## Create .venv and install everything, pinned

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 found; install Python 3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14))' \
	  || { echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1); 3.11 to 3.13 is needed: make PYTHON=python3.11" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(INSTALL) -c constraints.txt -e ".[$(EXTRAS)]"
	@# mmaction2 asks for decord. Where that has no wheel, mmaction2 is not in its extra.
	test -d "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mmaction" \
	  || $(INSTALL) --no-deps mmaction2==1.2.0
	@touch $(STAMP)

demo: demo-$(SIZE)  ## Run the pipeline (SIZE=full or small), print the results and the report's path

demo-full: $(STAMP)
	dvc repro
	@python cli.py results

demo-small: $(STAMP)
	mkdir -p $(SMALL)
	git ls-files -z --cached --others --exclude-standard \
	  | xargs -0 sh -c 'for f; do test -e "$$f" && printf "%s\0" "$$f"; done' sh \
	  | xargs -0 cp --parents --update -t $(SMALL)
	printf '[core]\n    no_scm = true\n' > $(SMALL)/.dvc/config.local
	$(COMPOSE) $(SMALL)/params.yaml '~experiment@_global_' experiment=small
	cd $(SMALL) && dvc repro && python cli.py results

# Debian's Chromium and the npm package axe-core, for the tests marked `browser` and for pictures.
AXE := .browser/node_modules/axe-core/axe.min.js
browser: $(AXE)  ## Install Chromium (as root, where missing) and axe-core for the tests of pages
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	    || { echo "no Chromium: install it (Debian: apt-get install chromium)" >&2; exit 2; }; \
	  apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }

$(AXE):
	@command -v npm >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq npm >/dev/null; } \
	  || { echo "no npm: install it (Debian: apt-get install npm)" >&2; exit 2; }
	npm install --silent --no-fund --no-audit --ignore-scripts --prefix .browser axe-core@$(AXE_VERSION)

pictures: $(STAMP)  ## Take the pictures of docs/ from the last run (needs a browser)
	python cli.py report --screenshots docs
	python cli.py demo-app --screenshots docs

test: $(STAMP)  ## Run the tests: every part, in about eight minutes
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "not slow and not long"

test-slow: $(STAMP)  ## Run the slow ones, which .ci/run runs too: kills, processes, DVC, whole runs
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "slow and not long"

test-all: $(STAMP)  ## Run all, also the long ones: dozens of kills, clusters, all stages again
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

lint: $(STAMP)  ## Check style, formatting and types
	ruff check .
	ruff format --check .
	mypy

format: $(STAMP)  ## Repair style and formatting
	ruff check --fix .
	ruff format .

docs: $(STAMP)  ## Build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

bench: $(STAMP)  ## Run the benchmarks (two write their pages in docs/: store, cached views)
	@$(INSTALL) -c constraints.txt -e ".[bench]"
	@set -e; for file in $$(grep -l __main__ benchmarks/*.py); do \
	  echo "== $$file"; python -m benchmarks.$$(basename $$file .py); done

params: $(STAMP)  ## Compose configs/ into params.yaml, each key with its meaning
	$(COMPOSE) params.yaml
	python cli.py show > .params.yaml && mv .params.yaml params.yaml

clean:  ## Delete what runs made (videos, stores, outputs) and site/; .venv stays
	rm -rf data stores outputs runs site
