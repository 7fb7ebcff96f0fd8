# `make demo` runs the main job on real data; `make test` runs all tests. Both set everything up first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What pip is asked for as torch, with options. The pinned build is the one that the index offers: on
# PyPI that is CUDA's, of several gigabytes. Without a GPU, name PyTorch's index of CPU builds:
#   make setup TORCH='torch==2.13.0 --index-url URL'   (URL: PyTorch's index of CPU builds)
TORCH ?= torch==2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_ALBUMENTATIONS_UPDATE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo miniature language test chaos fuzz bench check-newest audit lock check format clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make a .venv with pinned dependencies (3 minutes, once)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found. Remedy: install Python 3.11, or run make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "setting up $(VENV): pinned dependencies, about 3 minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq -c constraints.txt $(TORCH)
	@$(BIN)/pip install -qq -c constraints.txt -e '.[demo,dev,s3]'
	@$(BIN)/python -c "import torch, ray, mlflow, diffusers, img2dataset, fasttext, altdiffusion" && touch $@

demo: $(READY)  ## run links to images in 18 languages, end to end, on real data; run again to resume
	@$(BIN)/python -m demo

miniature: $(READY)  ## run the recipe in miniature: the long table, ablations, plots; run again to resume
	@$(BIN)/python -m demo.miniature

language: $(READY)  ## teach the miniature one more language without an image in it: make language LANG=sv
	@$(BIN)/python -m demo.language $(LANG)

test: $(READY)  ## run all tests except the chaos runs, which take minutes
	@$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

chaos: $(READY)  ## run every fault, write the table of docs/reliability.md, then run the other slow tests
	@PYTHONPATH=platform:. $(BIN)/python -m tests.chaos.report
	@$(BIN)/python -m pytest -m slow --timeout 3600 --deselect tests/chaos/test_cases.py::test_a_case_ends_as_it_must

fuzz: $(READY)  ## feed every reader of other people's bytes for 30 CPU-minutes, guided by coverage
	@$(BIN)/pip install -qq -c constraints.txt -e '.[fuzz]'
	@PYTHONPATH=platform:. $(BIN)/python -m tests.fuzz all --seconds 1800

bench: $(READY)  ## run every benchmark, one table each (an hour; docs/benchmarks.md has the figures)
	@set -e; for file in benchmarks/*.py; do name=$$(basename $$file .py); \
		case $$name in images|s3_server|storage_calls|web_server|web_worker) continue;; esac; \
		grep -q '__main__' $$file && { echo "== benchmarks.$$name"; PYTHONPATH=platform:. $(BIN)/python -m benchmarks.$$name; }; \
	done; true

check-newest:  ## run the suite with the newest packages that pyproject.toml admits, without the constraints
	@test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/pip install -qq --upgrade $(TORCH)
	@.venv-newest/bin/pip install -qq --upgrade --upgrade-strategy eager -e '.[demo,dev,s3]'
	@.venv-newest/bin/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

audit:  ## ask an advisory database about every locked package
	@test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install -qq --upgrade pip pip-audit
	@.venv-lock/bin/python -m deploy.audit

lock:  ## make the lock with hashes, the licences and the bill of materials from constraints.txt
	@test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install -qq --upgrade pip
	@.venv-lock/bin/python -m deploy.lock

check: $(READY)  ## check format, lint, types, import layers
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && PYTHONPATH=platform:. $(BIN)/lint-imports

format: $(READY)  ## apply the formatter and safe fixes
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove the demo's results (keeps .venv and downloaded packages)
	rm -rf .demo/lake .demo/out
