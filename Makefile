# `make help` lists the targets. Settings: EXPERIMENT names a file in conf/experiment/, ARGS adds
# overrides, e.g. make train-all EXPERIMENT=universal ARGS="shards.source.root=/data/universal seed=1"
# CLUSTER=slurm submits the stages as jobs, see docs/cluster.md; DRY_RUN=1 only shows them
SHELL := /bin/bash
PYTHON ?= python3
EXPERIMENT ?= demo
ARGS ?=
INPUT ?=
OUTPUT ?= restored
MODEL ?=
TO ?=
CLUSTER ?=
DRY_RUN ?=

BIN := .venv/bin
PACKAGES := .venv/.packages
READY := .venv/.ready
RUN = $(BIN)/python -m pipeline
# One thread each: for the tests' tiny networks more are slower, and beside other work much slower.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
SETTINGS = experiment=$(EXPERIMENT) $(ARGS)

.PHONY: help setup demo demo-train test test-quick test-slurm check lint types layers shards verify captions \
	train-controller train-restorer evaluate train-all status restore dashboard bench-data bench-train \
	bench-convergence bench-sampling bench-restore pretrained export push app test-page clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make the virtual environment with everything in it (done by every other target)

$(PACKAGES): requirements.txt requirements-build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give another one as PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
		{ echo "error: no venv module; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing about 6 GB of packages into .venv, once ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements-build.txt -r requirements.txt
	@touch $@

$(READY): $(PACKAGES) pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## restore ten kinds of damage with the model that comes with the project: table, report, pictures
	@$(RUN) run experiment=demo shards.source.crop=256 evaluate.pretrained=shipped
	@$(MAKE) --no-print-directory restore INPUT=outputs/demo/evaluation/examples OUTPUT=outputs/demo/restored ARGS=--compare

demo-train: ## train the whole chain offline on embedded photographs, ending in a report and restored photographs
	@$(MAKE) --no-print-directory train-all EXPERIMENT=demo ARGS="run_dir=outputs/demo-train"
	@$(MAKE) --no-print-directory restore MODEL=outputs/demo-train \
		INPUT=outputs/demo-train/evaluation/examples OUTPUT=outputs/demo-train/restored

verify: $(READY) ## check the shards against their index, and name every fault
	@$(RUN) verify $(SETTINGS)

ifeq ($(CLUSTER),)
# Without a cluster there is nothing for DRY_RUN to show; the command says so.
CHAIN = run
else ifeq ($(CLUSTER),slurm)
CHAIN = submit
else
$(error CLUSTER=$(CLUSTER) is unknown; there is CLUSTER=slurm)
endif
UPTO = $(RUN) $(CHAIN) --upto $@ $(if $(DRY_RUN),--dry-run) $(SETTINGS)

shards: $(READY) ## pairs of images into WebDataset shards
	@$(UPTO)

captions: $(READY) ## a caption for every clean image
	@$(UPTO)

train-controller: $(READY) ## stage (a): DA-CLIP's image controller
	@$(UPTO)

train-restorer: $(READY) ## stage (b): the diffusion restorer
	@$(UPTO)

evaluate: $(READY) ## table, confusion matrix and report.html
	@$(UPTO)

train-all: evaluate ## captions, controller, restorer and evaluation, each if it is not fresh

status: $(READY) ## how each stage of the run stands, with its job on a cluster
	@$(RUN) status $(SETTINGS)

restore: $(READY) ## restore photographs: make restore INPUT=photos OUTPUT=folder MODEL=name ARGS="--steps 4"
	@$(BIN)/restore '$(INPUT)' --output '$(OUTPUT)' $(if $(MODEL),--model '$(MODEL)') $(ARGS)

pretrained: $(READY) ## fetch all released weights, and convert them in ~/.cache/daclip
	@$(BIN)/python -m pipeline.models.publish fetch

export: $(READY) ## a model folder of a run: make export MODEL=run-folder OUTPUT=folder ARGS=--half
	@$(BIN)/python -m pipeline.models.publish export '$(MODEL)' '$(OUTPUT)' $(ARGS)

push: $(READY) ## publish a model folder on the Hugging Face Hub: make push MODEL=folder TO=owner/name
	@$(BIN)/python -m pipeline.models.publish push '$(MODEL)' '$(TO)'

app: $(READY) ## a page to restore photographs in the browser, on this machine alone: ARGS="--port 7860"
	@$(BIN)/python -m pipeline.app $(if $(MODEL),--model '$(MODEL)') $(ARGS)

dashboard: $(READY) ## curves of a run as RUN_DIR/dashboard.html; others beside: ARGS="dashboard.compare=[DIR]"
	@$(RUN) dashboard $(SETTINGS)

test: $(READY) ## all tests, on two cores
	@$(TEST) -n 2 --dist loadfile

test-quick: $(READY) ## the tests that take no training
	@$(TEST) -n 2 --dist loadfile -m "not slow"

test-slurm: $(READY) ## the chain on a real SLURM, which is installed and started here; needs root on Debian
	@tests/slurm/cluster.sh start && { $(TEST) tests/slurm; status=$$?; \
		tests/slurm/cluster.sh stop; exit $$status; }

test-page: $(READY) ## the page in a real browser, which is installed here; needs root on Debian for that
	@command -v chromium >/dev/null || tests/page/install.sh
	@$(TEST) tests/page

bench-data: $(READY) ## what loading data costs, beside the plain way; three minutes, 1 GB below TMPDIR
	@$(BIN)/python -m tests.benchmarks.data $(ARGS)

bench-train: $(READY) ## what training costs, beside the plain way; five minutes, 6 GB of memory
	@$(BIN)/python -m tests.benchmarks.train $(ARGS)

bench-sampling: $(READY) ## quality and time of few network calls beside a hundred, of a run: ARGS="run_dir=outputs/demo-train"
	@$(BIN)/python -m tests.benchmarks.sampling $(SETTINGS)

bench-restore: $(READY) ## how soon a photo is restored, and the memory of large ones; three minutes
	@$(BIN)/python -m tests.benchmarks.restore $(ARGS)

bench-convergence: $(READY) ## error of each sampler against its network calls, as docs/convergence.svg; seconds
	@$(BIN)/python -m tests.benchmarks.convergence $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

layers: $(READY)
	@$(BIN)/lint-imports

check: lint types layers test ## lint, types, import layering, tests

clean: ## remove the virtual environment, not what runs have made
	rm -rf .venv
