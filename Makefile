# Everything a developer needs, on a machine with only Python 3.11 and make. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CELERY_STAMP := $(VENV)/.installed-celery

.DEFAULT_GOAL := help
.PHONY: help venv lint postgres pgbouncer redis chromium test test-unit test-e2e test-celery dist test-dist release-check screenshots matrix matrix-oldest matrix-newest docs/compatibility.md soak mutants docs docs-links docs/errors.md docs/images/map.svg demo demo-ui bench bench-import bench-client bench-memory bench-masking bench-triggerer bench-campaign bench-scale bench-pace constraints clean

help: ## list the targets
	@grep -E '^[a-z0-9/.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

venv: $(STAMP) ## set up the virtual environment

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --group docs --editable '.[sandbox]'
	touch $@

lint: $(STAMP) ## ruff (lint and format), mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell airflow_provider_runa docs example_dags README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md

# Installs Debian's package, if there is none and we are root: $(call debian,what it is,is it here?,package,who needs it)
define debian
@if $(2); then \
  echo "$(1) is here."; \
elif [ "$$(id -u)" = 0 ]; then \
  apt-get update -qq && apt-get install -y -qq --no-install-recommends $(3); \
else \
  echo "$(1) is missing, and only root can install it: $(4) will be skipped."; \
fi
endef

postgres: ## a PostgreSQL server for the tests (installs a package, if we are root)
	$(call debian,A PostgreSQL server,command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1,postgresql,the tests that need it)

pgbouncer: ## a PgBouncer for the tests (installs a package, if we are root)
	$(call debian,PgBouncer,command -v pgbouncer >/dev/null || test -x /usr/sbin/pgbouncer,pgbouncer,the tests that need it)

redis: ## a Redis server for test-celery (installs a package, if we are root)
	$(call debian,A Redis server,command -v redis-server >/dev/null,redis-server,test-celery)

chromium: ## a browser for the tests of the UI (installs a package, if we are root)
	$(call debian,Chromium,command -v chromium >/dev/null,chromium,the tests of the UI)

$(CELERY_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group celery
	touch $@

test: $(STAMP) ## all tests but test-celery and test-dist
	$(BIN)/python -m pytest -m 'not e2e and not celery and not dist' -n 2
	$(BIN)/python -m pytest -m e2e

test-unit: $(STAMP) ## all but the tests on a real Airflow
	$(BIN)/python -m pytest -m 'not e2e and not celery and not dist' -n 2

test-e2e: $(STAMP) ## the tests on a real Airflow
	$(BIN)/python -m pytest -m e2e

test-celery: $(CELERY_STAMP) ## 200 orders on Celery while its processes are killed (about 6 minutes; see docs/celery.md)
	$(BIN)/python -m pytest -m celery

dist: $(STAMP) ## sdist and wheel, in .build/dist
	rm -rf .build/dist
	$(BIN)/uv build --quiet --out-dir .build/dist
	$(BIN)/twine check --strict .build/dist/*

test-dist: dist ## the wheel, installed in a fresh environment, away from the sources
	$(BIN)/python -m pytest -m dist tests/test_dist.py

release-check: $(STAMP) ## checks that TAG may be published: it names the version, and the changelog has it
	$(BIN)/python -m scripts.release_check "$$TAG"

screenshots: $(STAMP) ## the pictures of docs/ui.md, as the tests of the UI see it
	RUNA_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser

matrix: $(STAMP) ## the wheel on every supported Airflow and Python (4 minutes a cell)
	$(BIN)/nox --session matrix

matrix-oldest: $(STAMP) ## the wheel on the oldest of both
	$(BIN)/nox --session matrix --tags oldest

matrix-newest: $(STAMP) ## the wheel on the newest of both
	$(BIN)/nox --session matrix --tags newest

docs/compatibility.md: $(STAMP) ## the table of supported releases, from the last `make matrix`
	$(BIN)/python -m scripts.matrix_table > $@

soak: $(STAMP) ## many schedules of hostile events against placing and campaigns (bounded: 40 minutes)
	$(BIN)/python -m tests.placement.soak --schedules 20000 --seconds 1200
	$(BIN)/python -m tests.placement.soak --machine campaign --schedules 5000 --seconds 1200

mutants: $(STAMP) ## wrong algorithms, each of which the tests of placing must notice
	$(BIN)/python -m tests.placement.mutants

docs: $(STAMP) ## the documentation site, in .build/docs; every warning is an error
	rm -rf docs/reference .build/docs
	$(BIN)/python -m sphinx -W --keep-going -n -q docs .build/docs
	$(BIN)/codespell README.md docs example_dags airflow_provider_runa

docs-links: $(STAMP) ## follow the links to other sites, which takes a network: not a part of CI
	$(BIN)/python -m sphinx -b linkcheck -n -q docs .build/linkcheck

docs/images/map.svg: $(STAMP) ## the map of the rooms, from the code's imports
	$(BIN)/python -m scripts.map > $@

docs/errors.md: $(STAMP) ## the table of errors, from the code
	$(BIN)/python -m scripts.error_table > $@

demo: $(STAMP) ## run an example DAG on a real Airflow against the sandbox, and show the orders
	$(BIN)/python -m scripts.demo

demo-ui: $(STAMP) ## the same, and leave Airflow and the sandbox running
	$(BIN)/python -m scripts.demo --stay

bench: bench-import bench-client bench-memory bench-masking bench-triggerer ## all but bench-campaign, bench-scale and bench-pace; with -k past a missed target

bench-import: $(STAMP) ## what importing the operator costs, against the HTTP provider's
	$(BIN)/python benchmarks/import_time.py

bench-client: $(STAMP) ## what client and ledger cost, against a bare httpx loop
	$(BIN)/python -m benchmarks.client_overhead

bench-memory: $(STAMP) ## memory of a campaign of 1,000 to 200,000 rows, against loading them all
	$(BIN)/python -m benchmarks.memory

bench-masking: $(STAMP) ## how masking grows from 250 to 5,000 recipients
	$(BIN)/python -W ignore -m benchmarks.masking

bench-triggerer: $(STAMP) ## what 1,000 waiting orders cost a triggerer, against the HTTP provider's trigger
	$(BIN)/python benchmarks/triggerer.py

bench-campaign: $(STAMP) ## a campaign in a real Airflow, against a POST task and a sensor for each reward
	$(BIN)/python -m benchmarks.campaign

bench-scale: $(STAMP) ## what the ledger costs for 10,000 to 1,000,000 rows, on SQLite and PostgreSQL
	$(BIN)/python -m benchmarks.campaign_scale

bench-pace: $(STAMP) ## 300,000 rows at 300 orders a minute, with a faster clock: does the ledger keep up
	$(BIN)/python -m benchmarks.campaign_scale --orders-per-minute 300 --rows 300000

constraints: ## pin what a fresh environment holds: names and versions only
	rm -rf .build/constraints && $(PYTHON) -m venv .build/constraints
	.build/constraints/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.build/constraints/bin/python -m pip install --quiet --group dev --group celery --group docs --editable '.[sandbox]'
	(echo '# Versions this project was tested with (Python 3.11). Made by `make constraints`.'; \
	 .build/constraints/bin/python -m pip list --format freeze --exclude-editable \
	 --exclude pip --exclude setuptools --exclude wheel) > constraints.txt
	rm -rf .build/constraints

clean: ## remove what the other targets made
	rm -rf $(VENV) .build docs/reference .pytest_cache .mypy_cache .ruff_cache .hypothesis
