# Every target works on a fresh machine: set-up runs first where it is needed and takes a moment when nothing changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.bin:$(PATH)

.DEFAULT_GOAL := help
# No target is a file.
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## show this
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## make .venv and fetch kubectl and helm
	@$(PYTHON) scripts/setup_env.py --assets

demo: setup ## run examples/quickstart.yaml on the embedded control plane; Ctrl-C and run again to continue
	@$(VENV)/wrpo demo

demo-s3: ## the same with all it reads and makes in a bucket of an S3 server on loopback; no volume
	@$(PYTHON) scripts/setup_env.py --assets --s3
	@$(VENV)/wrpo demo --s3

demo-clean: ## remove all that the demos made (not .venv)
	@if [ -x $(VENV)/wrpo ]; then $(VENV)/wrpo dev reset --yes; else rm -rf .wrpo; fi

# One more than cores: tests that wait for a cluster or a time-out leave a core free.
WORKERS = $(shell expr $$(nproc) + 1)

test: ## install and run everything CI runs
	@$(PYTHON) scripts/setup_env.py --assets --dev
	@$(MAKE) --no-print-directory check
	@$(VENV)/python -m pytest -m "" -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=15

check: lint types imports prose version ## lint, types, import contracts, prose, version

lint:
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .

types:
	@$(VENV)/mypy
	@$(VENV)/mypy --config-file tests/mypy.ini tests
	@$(VENV)/mypy --config-file tests/mypy.ini -m e2e.conftest -m engine.conftest -m engine.artifacts.conftest -m engine.judging.conftest -m engine.training.conftest -m runtime.conftest

imports:
	@$(VENV)/lint-imports

prose: ## English of the documentation, by the rules in .vale/styles
	@$(VENV)/python scripts/prose.py

version:
	@$(VENV)/python scripts/version.py --check

unit: ## the quick tests
	@$(VENV)/python -m pytest

slow: ## tests with real models and real training
	@$(VENV)/python -m pytest -m slow

cluster: ## tests with a control plane; WRPO_E2E_CLUSTER=1 KUBECONFIG=... for your own
	@$(VENV)/python -m pytest -m cluster

mutation: ## break modules one line at a time and see whether their tests notice; MUTATION="batching --sample 40"
	@$(PYTHON) scripts/setup_env.py --dev
	@$(VENV)/python -m scripts.mutation $(MUTATION)

e2e: ## one whole experiment with stand-in stages; CLUSTER=1 KUBECONFIG=... on a cluster of yours, E2E_FLAGS="--help"
	@$(PYTHON) scripts/setup_env.py --assets --dev
	@$(VENV)/python scripts/e2e.py $(if $(filter 1,$(CLUSTER)),--cluster) $(E2E_FLAGS)

e2e-kind: ## e2e and the cluster tests on a kind cluster made for them; needs kind and docker or podman
	@$(PYTHON) scripts/setup_env.py --assets --dev
	@$(VENV)/python scripts/e2e_kind.py $(KIND_FLAGS)

study: setup-study ## test the paper's claims on small real models and write docs/study.md (an hour on two cores)
	@$(VENV)/python -m benchmarks.study

study-quick: setup-study ## a part of it with one seed (ten minutes)
	@$(VENV)/python -m benchmarks.study --quick

study-page: ## write docs/study.md from the last result
	@$(VENV)/python -m benchmarks.study --page

setup-study:
	@$(PYTHON) scripts/setup_env.py --assets --dev

bench-setup:
	@$(PYTHON) scripts/setup_env.py --dev

bench-operator: bench-setup ## one operator with 50 and with 500 experiments: latency, API calls, memory (15 minutes)
	@$(VENV)/python -m benchmarks.operator.scale

bench-training: bench-setup ## step time and memory of training against a plain recipe and TRL (minutes)
	@$(VENV)/python -m benchmarks.training.compare

bench-training-vocabulary: bench-setup ## the same with a vocabulary of 131,072
	@$(VENV)/python -m benchmarks.training.vocabulary

bench-training-scaling: bench-setup ## training with one process and with two
	@$(VENV)/python -m benchmarks.training.scaling

bench-training-growth: bench-setup ## cost of a training step as batch, lengths and responses grow
	@$(VENV)/python -m benchmarks.training.growth

bench-training-fusion: bench-setup ## step time and memory of SFT with the fusion loss against SFT
	@$(VENV)/python -m benchmarks.training.fusion

bench-sampling: bench-setup ## the sample stage against a bare LLM.generate; both backends (15 minutes)
	@$(VENV)/python -m benchmarks.sampling

bench-scoring: bench-setup ## reward scoring against one response at a time
	@$(VENV)/python -m benchmarks.scoring

bench-judging: bench-setup ## the judge stage against a bare loop of its HTTP client
	@$(VENV)/python -m benchmarks.judging

bench-ranking: bench-setup ## PairRM against one pair at a time
	@$(VENV)/python -m benchmarks.ranking

bench-merging: bench-setup ## memory and speed of merging eleven models of an 8B model's shapes (minutes; 15 GB of disk)
	@$(VENV)/python -m benchmarks.merging

bench-curation: bench-setup ## curation of 3.3 million responses (the data take 10 minutes, once)
	@$(VENV)/python -m benchmarks.curation

bench-statistics: bench-setup ## intervals and differences of 23 systems on 3 benchmarks
	@$(VENV)/python -m benchmarks.statistics

bench-orchestration: setup ## where the time of the quick start goes beside its stages' own work; runs `make demo` first
	@$(VENV)/wrpo demo
	@$(VENV)/python -m benchmarks.orchestration

bench-gpu: bench-setup ## what only a GPU shows, on one card (20 minutes); BENCH_GPU="--quick", "--part layers", "--help"
	@$(VENV)/python -m benchmarks.gpu $(BENCH_GPU)

bench-readme: ## put the saved results into benchmarks/README.md
	@$(VENV)/python -m benchmarks.readme

crds: ## generate crds/, the chart's copy, the reference pages and the lists of stages from API models and definitions
	@$(VENV)/python -m wrpo_operator.api.crd --write
	@$(VENV)/python -m wrpo_operator.api.sweep_crd --write
	@$(VENV)/python -m wrpo_operator.api.backends --write
	@cp crds/*.yaml charts/wrpo-operator/files/
	@$(VENV)/python -m wrpo_operator.api.reference --write
	@$(VENV)/python -m wrpo_engine.exit_codes > docs/reference/exit-codes.md
	@$(VENV)/python -m wrpo_operator.api.stage_lists --write
	@$(VENV)/python -m wrpo_operator.sizing.values_schema --write

chart-readme: ## write the chart's README from its values
	@$(VENV)/python scripts/chart_readme.py --write

image-test: ## build the operator's image and run an experiment with it (needs podman; WRPO_BASE_IMAGE=... for another base)
	@$(PYTHON) scripts/setup_env.py --assets --dev
	@$(VENV)/python images/image_test.py

lock: ## resolve requirements/*.in into pins (needs uv)
	@scripts/lock.sh
