# couponsvc: everything a developer or a visitor types. `make` alone prints this as help.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
# pip's output as one growing line of names; its errors go to stderr as they are.
BRIEFLY := awk '/^Collecting /      {printf " %s", $$2; fflush(); any = 1} \
                /^Installing coll/ {printf "%sinstalling", any ? "\n" : ""; fflush(); any = 1} \
                END                {if (any) print ""}'

# pytest workers for the fast set; each has its own Redis and Postgres.
WORKERS ?= 2

# Tests start some hundred processes and each pytest worker reads every test: compiled once, not every time.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest

.PHONY: help demo demo-partner up load test test-fast test-slow test-faults faults sweep soak lint types check-imports check-lua check-deploy bench bench-guard model all lock clean

help: ## print this
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_READY) ## run a rush on a sample program and check every promise (KEEP=1 keeps serving)
	@$(BIN)/couponsvc demo $(if $(KEEP),--keep)

demo-partner: $(RUN_READY) ## the same with a subscribed partner, it and the relay killed at random, ledgers compared
	@$(BIN)/couponsvc demo --partner --kill

up: $(RUN_READY) ## run the service on this machine, data in ./var
	@$(BIN)/couponsvc up

# SCENARIO, PERSONS, RATE, HOST, CREDENTIALS, PLAN, PROCESSES, SEED: see loadtests/README.md. HOST counts only
# on the command line, because some shells export one of their own.
SCENARIO ?= rush
load: $(DEV_READY) ## run a load test and judge it (SCENARIO=rush PERSONS=20000; HOST=https://… CREDENTIALS=file)
	@$(BIN)/python -m loadtests run $(SCENARIO) $(if $(PERSONS),--persons $(PERSONS)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(filter command,$(origin HOST)),--host $(HOST)) $(if $(CREDENTIALS),--credentials $(CREDENTIALS)) $(if $(PLAN),--plan $(PLAN)) \
	  $(if $(PROCESSES),--processes $(PROCESSES)) $(if $(SEED),--seed $(SEED))

test: test-fast test-slow test-faults ## pass every test

test-fast: $(DEV_READY) ## pass the tests that kill nothing, in parallel
	@echo "== fast tests ($(WORKERS) workers)"
	@$(PYTEST) -n $(WORKERS) -m "not faults and not slow" --durations 5

test-slow: $(DEV_READY) ## pass the tests that take longer and disturb nobody, in parallel
	@echo "== slow tests ($(WORKERS) workers)"
	@$(PYTEST) -n $(WORKERS) -m "slow and not faults" --durations 5

test-faults: $(DEV_READY) ## pass the tests that run alone: real processes killed, paused, flooded; broken doubles
	@echo "== fault tests"
	@$(PYTEST) -m faults --durations 5

# SEED=7 repeats one schedule; otherwise SEEDS schedules from FIRST on, JOBS at a time. Results and findings:
# var/faults. OPTIONS="--only 'redis wiped' --times 100": one kind of fault, counted (python -m tests.faults.run --help).
faults: $(DEV_READY) ## break everything on purpose, for SEEDS schedules of SECONDS each, and judge (SEED=7: only that one)
	@$(BIN)/python -m tests.faults.run --first-seed $(or $(SEED),$(FIRST),1) \
	  --seeds $(if $(SEED),1,$(or $(SEEDS),10)) --seconds $(or $(SECONDS),20) --jobs $(or $(JOBS),1) $(OPTIONS)

# atheris (libFuzzer) has wheels for x86-64 Linux only; elsewhere inputs are altered at random.
FUZZ_READY := $(VENV)/.fuzz-ready
$(FUZZ_READY): $(DEV_READY) tests/fuzz/requirements.lock
	@$(INSTALL) --quiet --require-hashes --no-deps -r tests/fuzz/requirements.lock || echo "no atheris here: fuzzing at random"
	@touch $@

fuzz: $(FUZZ_READY) ## fuzz the readers of what strangers send (SECONDS=60; OPTIONS="webhook_url …")
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(OPTIONS)

sweep: $(DEV_READY) ## kill, pause and raise at every named point of our code, and play every planted bug
	@COUPONSVC_FULL_SWEEP=1 $(PYTEST) -m faults tests/faults/test_kill_points.py tests/faults/test_planted_bugs.py

soak: $(DEV_READY) ## run the service for MINUTES under load with a fault a minute, and see whether anything grows
	@$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),60) $(OPTIONS)

lint: $(DEV_READY) ## check style and formatting of Python
	@echo "== ruff"
	@$(BIN)/ruff check src tests bench loadtests
	@$(BIN)/ruff format --check src tests bench loadtests

types: $(DEV_READY) ## check types, strictly
	@echo "== mypy"
	@$(BIN)/mypy

check-imports: $(DEV_READY) ## check which part may import which (.importlinter)
	@echo "== import contracts"
	@$(BIN)/lint-imports --no-logo

# Every script is also compiled by the server in the tests; this finds an error earlier and more of them.
check-lua: ## lint the Lua scripts, where luacheck or luac is installed
	@echo "== lua"
	@scripts=$$(find src -name '*.lua'); \
	if command -v luacheck >/dev/null; then \
	  luacheck --quiet --no-color --std lua51 --max-line-length 120 \
	    --read-globals redis cmsgpack KEYS ARGV -- $$scripts; \
	  luacheck --quiet --no-color --std luajit --max-line-length 120 --globals init request setup done \
	    sent_count at_open at_end open_s end_s ran_out cpu_at_s -- bench/closed_loop.lua bench/flood.lua; \
	  luacheck --quiet --no-color --std lua51 --read-globals redis KEYS ARGV -- bench/contenders/lua; \
	  luacheck --quiet --no-color --std ngx_lua -- bench/contenders/nginx; \
	elif compiler=$$(command -v luac5.1 || command -v luac); then "$$compiler" -p $$scripts; \
	else echo "not linted: luacheck is not installed (apt-get install lua-check)"; fi

check-deploy: $(DEV_READY) ## check Dockerfile, compose.yaml and other YAML
	@echo "== deployment files"
	@$(BIN)/hadolint --no-color Dockerfile
	@$(BIN)/yamllint --strict -d '{extends: default, rules: {line-length: {max: 120}}}' \
	  compose.yaml .hadolint.yaml .pre-commit-config.yaml
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

# Fastify is the one contender whose packages come from another registry; without them it is left out.
bench: $(DEV_READY) ## compare with nine other ways to do the job, in one run (OPTIONS="--only …"; needs wrk)
	@if command -v npm >/dev/null && ! test -d bench/contenders/fastify/node_modules; then \
	  npm ci --silent --no-audit --no-fund --prefix bench/contenders/fastify \
	    || echo "no packages for Fastify: it is left out"; fi
	@$(BIN)/python -m bench $(OPTIONS)

bench-guard: $(DEV_READY) ## compare CPU per request with bench/baseline.json (OPTIONS=--accept writes it anew)
	@$(BIN)/python -m bench.guard $(OPTIONS)

model: ## explore the protocol's models with spin: every promise holds, every removed rule is missed
	@echo "== models"
	@$(PYTHON) docs/model/explore.py

all: lint types check-imports check-lua check-deploy test ## check everything

lock: $(DEV_READY) ## make locks/*.lock anew from pyproject.toml
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	uv pip compile --generate-hashes --no-header --no-annotate --python-version 3.11 \
	  --extra embedded --extra build -o locks/run.lock pyproject.toml
	uv pip compile --generate-hashes --no-header --no-annotate --python-version 3.11 \
	  --extra embedded --extra build --extra load --extra nats --extra kafka --extra dev -c locks/run.lock -o locks/dev.lock pyproject.toml

clean: ## remove what make made; never the data in ./var
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python lacks venv: apt-get install python3-venv" >&2; exit 1; }
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# A package named in a lock is taken only with the recorded hash; the project itself needs no network.
$(RUN_READY): $(BIN)/python locks/run.lock pyproject.toml
	@echo "== installing what the service needs (locks/run.lock)"
	@$(INSTALL) --require-hashes -r locks/run.lock | $(BRIEFLY)
	@$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_READY): $(BIN)/python locks/dev.lock pyproject.toml
	@echo "== installing what tests need (locks/dev.lock)"
	@$(INSTALL) --require-hashes -r locks/dev.lock | $(BRIEFLY)
	@$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@ $(RUN_READY)
