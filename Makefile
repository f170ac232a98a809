# `make demo` and `make test` each work as the only command typed in a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
# What to install: `gpu` where an NVIDIA driver answers, `cpu` elsewhere; `make EXTRA=cpu …` decides by hand.
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TEACHER ?=
PRESET ?= auto

BIN := .venv/bin
INSTALLED := .venv/.installed-$(EXTRA)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup lock system-packages demo test test-all run-tests lint bench

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: $(INSTALLED)  ## install everything into .venv (a no-op when nothing changed)

$(INSTALLED): pyproject.toml locks/$(EXTRA).txt
	@command -v $(PYTHON) >/dev/null || { echo "setup: no $(PYTHON); install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python3 setup" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { echo "setup: $$($(PYTHON) --version) is not 3.11 to 3.13; name another: make PYTHON=/path/to/python3 setup" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: $(PYTHON) lacks the venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo "setup: no C compiler (cc or gcc), which Triton and vLLM call; on Debian: apt-get install gcc python3-dev" >&2; exit 2; }
	@tools/install $(PYTHON) locks/$(EXTRA).txt
	touch $@

lock:  ## choose versions anew: write locks/cpu.txt and locks/gpu.txt (minutes)
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install -q uv 'torch==2.13.0+cpu'
	build/lock/bin/pip install -q -e '.[cpu,dev]'
	build/lock/bin/python tools/lock.py > locks/cpu.txt
	# What exists already at the output is preferred, so both locks agree wherever CUDA lets them.
	grep -v -- '+cpu' locks/cpu.txt > locks/gpu.txt
	build/lock/bin/uv pip compile -q --extra gpu --extra dev --python-version 3.12 --python-platform x86_64-manylinux_2_36 \
		--no-annotate --custom-compile-command "make lock" -o locks/gpu.txt pyproject.toml

system-packages:  ## PostgreSQL, Chromium and nginx, without which the tests that need them are skipped (Debian, as root)
	if ! command -v chromium >/dev/null || ! command -v nginx >/dev/null || ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends postgresql chromium nginx >/dev/null
	fi

demo: setup  ## teacher -> shards -> HTTP -> student -> evaluation; report in runs/demo/report.html
	$(BIN)/python examples/demo.py --preset $(PRESET) $(if $(TEACHER),--teacher $(TEACHER))

test: run-tests  ## the default suite

test-all: CHOSEN = -m 'not gpu' --timeout=3600
test-all: run-tests  ## everything that needs no GPU, slow and crash tests included

run-tests: setup
	export OMP_NUM_THREADS=1
	# The store's tests fork, which torch's threads do not survive: a process of its own, beside the others.
	mkdir -p build
	$(BIN)/pytest $(CHOSEN) tests/store >build/test-store.txt 2>&1 & store=$$!
	trap 'kill $$store 2>/dev/null || true' EXIT
	failed=0
	$(BIN)/pytest $(CHOSEN) -n 2 --dist loadgroup --no-loadscope-reorder tests --ignore=tests/store || failed=1
	wait $$store || failed=1
	cat build/test-store.txt
	exit $$failed

lint: setup  ## formatter, linter and strict type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## the benchmarks that need nothing but this checkout; tables on stdout, JSON in runs/bench
	mkdir -p runs/bench
	for name in kernels decode freed_memory store capture capture_function tokenise api; do
		$(BIN)/python benchmarks/$$name.py --json-out runs/bench/$$name.json
	done
