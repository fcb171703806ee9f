# Everything lives in the project's folder: .venv (the project), .ministack (the AWS stand-in, whose
# dependencies would not agree with Airflow's), .programs (agents' programs from npm) and .demo (what
# the last demo wrote).

# The demo's repository (path or URL) and the script of its models; empty takes the project's own.
REPOSITORY ?=
REHEARSAL ?=
# More arguments for pytest, as in: make test ARGS="tests/agents -x"
ARGS ?=
# How many tests run at once.
WORKERS ?= 2

# The soak: how many runs, the first one's seed, the agents that do its steps in turn (commas), and
# how many runs go on at once.
SOAK_RUNS ?= 100
SOAK_SEED ?= 1
SOAK_AGENTS ?= codex
SOAK_AT_ONCE ?= 3

export REPOSITORY REHEARSAL

.PHONY: demo up test conformance hostile soak failures lint format bench schema setup clean

demo: setup
	@.venv/bin/python -m infra.local.demo --repository "$$REPOSITORY" --rehearsal "$$REHEARSAL"

up: setup
	@.venv/bin/python -m infra.local.demo --stay --repository "$$REPOSITORY" --rehearsal "$$REHEARSAL"

test: setup
	.venv/bin/python -m pytest -n $(WORKERS) $(ARGS)

# What an agent could try against this worker, as root and as an ordinary user; prints a table.
hostile: setup
	@.venv/bin/python -m tests.sandbox.hostile $(ARGS)

conformance: setup
	.venv/bin/python -m tests.conformance.table -n $(WORKERS)

# Airflow in the process that drives a test of a running one: a home of its own, and no chatter.
soak failures: export AIRFLOW_HOME = $(CURDIR)/.demo/driver
soak failures: export AIRFLOW__LOGGING__LOGGING_LEVEL = WARNING

soak: setup
	@.venv/bin/python -m tests.e2e.soak --runs $(SOAK_RUNS) --seed $(SOAK_SEED) \
		--agents "$(SOAK_AGENTS)" --at-once $(SOAK_AT_ONCE)

failures: setup
	@.venv/bin/python -m tests.e2e.failure_classes

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: export AIRFLOW_HOME = $(CURDIR)/.demo/bench
bench: setup
	@for each in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== $$each"; .venv/bin/python $$each || exit 1; done

# What editors know of the workflow language, as the models have it now.
schema: export AIRFLOW_HOME = $(CURDIR)/.demo/schema
schema: setup
	@mkdir -p .demo
	@.venv/bin/airflow agents schema > .demo/workflow.schema.json
	@mv .demo/workflow.schema.json dag_factory/workflow.schema.json

setup: .venv/installed .ministack/installed .programs/installed

.venv/installed: pyproject.toml infra/setup.sh infra/debian.sh
	infra/setup.sh .venv --editable '.[dev]'

.ministack/installed: infra/setup.sh infra/debian.sh
	infra/setup.sh .ministack 'ministack==1.5.33'

.programs/installed: infra/setup-programs.sh infra/debian.sh
	infra/setup-programs.sh .programs

clean:
	rm -rf .venv .ministack .programs .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
