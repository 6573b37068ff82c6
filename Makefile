# Every command for developers; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYLATE_BIN := .venv-pylate/bin
PYLATE_READY := .venv-pylate/.ready
# Idle threads sleep instead of spinning, so two jobs on the same cores do not slow each other down.
export OMP_WAIT_POLICY ?= PASSIVE

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints/core.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "embedserve needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv (the first time takes minutes: torch is large) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,dev]' -c constraints/core.txt
	@touch $(READY)

setup: $(READY) ## create .venv and install into it

serve: $(READY) ## build the sample collection on the first run, start the server, print its address
	@$(BIN)/embedserve serve --build-sample

test: $(READY) ## run the tests, one process per core, at most four
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(READY) ## ruff, formatting and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY) ## fix and format with ruff
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

options: $(READY) ## write the tables of options in docs/strategies from the code
	@$(BIN)/python -m embedserve.strategies.option_tables docs/strategies.md docs/strategies/*.md

bench: $(READY) ## quality and speed of nano: the numbers of its model card (DATA=folder of evaluation sets)
	@$(BIN)/python -m benchmarks.encoding.nano_quality $(if $(DATA),--data "$(DATA)")
	@$(BIN)/python -m benchmarks.encoding.sample_search
	@$(BIN)/python -m benchmarks.encoding.encode_speed

zoo: $(READY) ## every strategy on every local evaluation set (DATA=folder of them): the table of docs/results.md
	@test -n "$(DATA)" || { echo "usage: make zoo DATA=folder [RESULTS=folder]" >&2; exit 2; }
	@$(BIN)/embedserve bench mteb --data "$(DATA)" --results "$(or $(RESULTS),results)"

bench-speed: $(READY) ## encoding time of every strategy relative to last-token pooling
	@$(BIN)/python -m benchmarks.encoding.strategy_speed

bench-job: $(READY) ## the offline job: rate, resuming, memory: the numbers of docs/scale.md
	@$(BIN)/python -m benchmarks.jobs.job_speed

bench-collections: $(READY) ## writes, searches during writes, filters: the numbers of docs/collections.md
	@$(BIN)/python -m benchmarks.indexes.collection_speed

bench-serve: $(READY) ## the service under load, compared with other servers, which it installs; WORK=folder: also /search
	@$(BIN)/python -c 'import batched, litserve' 2>/dev/null || $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check -e '.[cpu,dev,bench]' -c constraints/core.txt
	@$(BIN)/python -m benchmarks.serving.embed_load
	@$(if $(WORK),$(BIN)/python -m benchmarks.serving.embed_load --search --work "$(WORK)")

bench-index: $(READY) ## indexes: the tables of docs/indexing.md (DATA=evaluation sets, TEXTS=folder of *.jsonl.gz with "text")
	@test -n "$(DATA)" -a -n "$(TEXTS)" || { echo "usage: make bench-index DATA=folder TEXTS=folder" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.indexes.dense_search --data "$(TEXTS)" --count 100000 --part kinds
	@$(BIN)/python -m benchmarks.indexes.dense_search --data "$(TEXTS)" --count 100000 --part dimensions \
		--judged "$(DATA)/retrieval/squad-dev"
	@$(BIN)/python -m benchmarks.indexes.late_interaction_search --data "$(DATA)"
	@$(BIN)/python -m benchmarks.indexes.late_interaction_search --data "$(DATA)" --sets squad-dev --queries 100 --texts "$(TEXTS)" \
		--documents 50000 --only "exact float16" "mean-pooled flat" muvera "muvera, encodings kept" lemur
	@$(BIN)/python -m benchmarks.indexes.fde_speed
	@$(BIN)/python -m benchmarks.indexes.maxsim_speed

train-zoo: $(READY) ## train the heads that ship with nano (DATA=folder of training texts, WORK=folder for their states)
	@test -n "$(DATA)" -a -n "$(WORK)" || { echo "usage: make train-zoo DATA=folder WORK=folder" >&2; exit 2; }
	@$(BIN)/python -m embedserve.training.zoo --data "$(DATA)" --cache "$(WORK)"

train-nano: $(READY) ## train nano again (DATA=folder of training texts, WORK=folder for intermediate files)
	@test -n "$(DATA)" -a -n "$(WORK)" || { echo "usage: make train-nano DATA=folder WORK=folder" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet -e '.[cpu,dev,train]' -c constraints/core.txt
	@$(BIN)/python -m embedserve.training.nano --data "$(DATA)" --work "$(WORK)"

$(PYLATE_READY): pyproject.toml constraints/pylate.txt
	@echo "Setting up .venv-pylate (6 GB on disk: this torch comes with CUDA) ..."
	@$(PYTHON) -m venv .venv-pylate
	@$(PYLATE_BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,dev,pylate]' -c constraints/pylate.txt
	@touch $(PYLATE_READY)

test-pylate: $(PYLATE_READY) ## the tests of encoders and indexes with sentence-transformers 5.3 and PyLate
	@$(PYLATE_BIN)/python -m pytest -n logical --maxprocesses 4 tests/embedserve tests/indexing

test-crash: $(READY) ## 1,000 kills of a writer, 3,000 power cuts, 10,000 operations against a dictionary: up to an hour
	@KILLS=1000 CUTS=3000 MODEL_OPERATIONS=10000 $(BIN)/python -m pytest -s tests/indexing/test_indexing_kills.py \
		tests/indexing/test_indexing_power.py tests/indexing/test_indexing_model.py

test-plaid: $(PYLATE_READY) ## the tests of PLAID, in the environment of test-pylate
	@$(PYLATE_BIN)/python -m pytest tests/indexing/test_indexing_plaid.py

test-ray: $(READY) ## the offline job on a Ray cluster of three nodes on this machine; installs Ray
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,dev,ray]' -c constraints/core.txt
	@RAY_AUTH_MODE=disabled $(BIN)/python -m pytest tests/indexing/test_indexing_job_ray.py

clean: ## remove .venv and caches, never data
	@rm -rf .venv .venv-pylate .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

.PHONY: help setup serve test lint format bench zoo bench-speed bench-job bench-collections bench-serve bench-index train-zoo train-nano test-pylate test-crash test-plaid test-ray clean
.DEFAULT_GOAL := help
