# Everything a newcomer needs: 'make train' and 'make test' work in a fresh clone with nothing installed.

# Given by the user, or empty: commands for a trained network take its own data set unless another one is named.
NAMED_DATASET := $(if $(filter undefined,$(origin DATASET)),,$(DATASET))
DATASET ?= synthetic
DATA_DIR ?=
SPLIT ?=
RUN ?=
ARGS ?=
VENV ?= .venv

# Bytecode is kept, in any case: if every process compiled TensorFlow anew, each import would take three times as long.
unexport PYTHONDONTWRITEBYTECODE

# The newest suitable Python found; PYTHON=... chooses one. An environment that is there keeps its own.
SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.10 python3; do \
  $$python -c '$(SUITABLE)' 2>/dev/null && command -v $$python && break; done)
# For the environment's Python: TensorFlow 2.15 before 3.12, the newest since then.
CONSTRAINTS = constraints-$$($(BIN)/python -c 'import sys; print("py310" if sys.version_info < (3, 12) else "py312")').txt
PACKAGES = --quiet --no-build-isolation -c $(CONSTRAINTS) -e '.[test,lint]'

BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN_FLAG = $(if $(RUN),--run "$(RUN)")
RUN_FLAGS = $(RUN_FLAG) $(if $(NAMED_DATASET),--dataset $(NAMED_DATASET))
# Before the first training: a network of the package.
BENCHED = $(or $(strip $(RUN_FLAGS)),$(if $(wildcard runs/*/checkpoints/checkpoint),,--run han_small-synthetic))
DATA_FLAGS = $(if $(DATA_DIR),--data_dir "$(DATA_DIR)") $(if $(SPLIT),--split $(SPLIT))

# table1 … table12, figure6, figure7, cost_effectiveness
EXPERIMENTS := $(basename $(notdir $(wildcard experiments/configs/*.py)))

.DEFAULT_GOAL := help
.PHONY: help setup train evaluate export demo test lint audit format tensorboard visualize flops bench experiments report chaos
.PHONY: constraints clean
.PHONY: $(EXPERIMENTS)

help:  ## show this list
	@echo 'usage: make TARGET [DATASET=synthetic] [SPLIT=...] [DATA_DIR=...] [RUN=...] [ARGS="--flag value ..."]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1  \2/p' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with every pinned package

$(READY): constraints-py310.txt constraints-py312.txt setup.py
	@set -e; if $(BIN)/python -c '$(SUITABLE)' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1; then exit; fi; \
	python='$(PYTHON)'; \
	if [ -z "$$python" ] && command -v uv >/dev/null; then \
	  python=$$(uv python find 3.13 2>/dev/null || { uv python install 3.13 >&2 && uv python find 3.13; }); fi; \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python 3.10 to 3.13 found; install one, or uv, which gets one, or give PYTHON=/path/to/python' >&2; \
	  exit 1; fi; \
	"$$python" -c '$(SUITABLE)' 2>/dev/null \
	  || { echo "error: PYTHON=$$python is no Python 3.10 to 3.13" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $$python has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	echo "$$python -m venv --clear $(VENV)"; "$$python" -m venv --clear $(VENV)
	@echo 'installing the pinned packages into $(VENV)'; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) pip setuptools wheel
	@# uv takes a fraction of pip's time. It does not read pip's settings: if they name an index, pip installs.
	@case "$$($(BIN)/python -m pip config list)" in *.index-url=*|*.no-index=*) ;; \
	  *) $(BIN)/python -m pip install --quiet --only-binary :all: -c $(CONSTRAINTS) uv || true;; esac
	@{ [ -x $(BIN)/uv ] && $(BIN)/uv pip install --python $(BIN)/python $(PACKAGES); } \
	  || $(BIN)/python -m pip install $(PACKAGES)
	$(BIN)/python -m pip check
	@touch $@

train: $(READY)  ## train, evaluate and draw the attention; synthetic data unless DATASET is given
	$(BIN)/python -m han_tf.train --dataset $(DATASET) $(RUN_FLAG) $(DATA_FLAGS) $(ARGS)

evaluate: $(READY)  ## evaluate the newest run (RUN=... for another)
	$(BIN)/python -m han_tf.evaluate $(RUN_FLAGS) $(DATA_FLAGS) $(ARGS)

export: $(READY)  ## export the newest run, checked, to formats that run faster (ARGS="--format openvino --precision bfloat16")
	$(BIN)/python -m han_tf.export $(RUN_FLAGS) $(DATA_FLAGS) $(ARGS)

demo: $(READY)  ## search drawn pedestrians in the browser, with the newest run of make train or a network of the package
	$(BIN)/python -m han_tf.demo $(RUN_FLAG) $(ARGS)

visualize: $(READY)  ## write the attention sheet and a ranked list of the newest run
	$(BIN)/python -m han_tf.visualize --ranked $(RUN_FLAGS) $(DATA_FLAGS) $(ARGS)

tensorboard: $(READY)  ## open TensorBoard on all runs: curves, regions, attention maps
	$(BIN)/python -m tensorboard.main --logdir runs --load_fast=false --samples_per_plugin images=100 $(ARGS)

flops: $(READY)  ## print FLOPs and parameters of the networks
	$(BIN)/python -m han_tf.flops $(ARGS)

bench: $(READY)  ## measure training, inference, the input pipeline, the metrics and the exported models of a run here
	$(BIN)/python -m han_tf.bench
	$(BIN)/python -m experiments.bench_metrics $(ARGS)
	$(BIN)/python -m han_tf.export $(BENCHED) $(DATA_FLAGS) --format openvino --precision all
	$(BIN)/python -m experiments.bench_runtimes $(BENCHED) $(if $(SPLIT),--split $(SPLIT))

experiments: $(READY)  ## list the paper's tables and figures; each is a target: table1 ... table12, figure6, figure7
	$(BIN)/python -m experiments.run

$(EXPERIMENTS): $(READY)
	$(BIN)/python -m experiments.run $@ $(if $(filter synthetic,$(DATASET)),,--dataset $(DATASET)) $(DATA_FLAGS) $(ARGS)

chaos: $(READY)  ## test with kills, disk faults, damaged inputs and load whether anything is lost (up to an hour)
	$(BIN)/python -m experiments.chaos $(ARGS)

report: $(READY)  ## build experiments/RESULTS.md from the results in experiments/results
	$(BIN)/python -m experiments.report $(ARGS)

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

lint: $(READY)  ## check style, format, types and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

audit: $(READY)  ## compare the installed packages with known vulnerabilities, if the data can be reached
	$(BIN)/python .ci/audit

format: $(READY)  ## put the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(READY)  ## resolve both constraints files anew from constraints*.in
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) uv
	for python in 3.10 3.12; do name=constraints-py$$(echo $$python | tr -d .); \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --python-version $$python --fork-strategy fewest --no-annotate \
	  --custom-compile-command 'make constraints' $$name.in --output-file $$name.txt || exit; done

clean:  ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
