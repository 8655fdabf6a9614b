# One command from a fresh machine: `make train` or `make test`. Nothing outside this folder changes.
#   make train UV_TORCH_BACKEND=cpu   take the small CPU build of torch (or cu128, auto, ...)
#   make train PYTHON=python3.12      another interpreter
#   make train ARGS="--seed_everything 1"

PYTHON   ?= python3
VENV     ?= .venv
CONFIG   ?= configs/shapes.yaml
ARGS     ?=
PYTEST_ARGS ?=
GPU_ARGS ?=
BENCH_ARGS ?= all --quick
# Test processes; torch's threads are held at one each, as two of them on two busy cores only spin.
WORKERS  ?= 2
# Where the system has `timeout`, 70 minutes for all tests together.
LIMIT    := $(if $(shell command -v timeout),timeout --foreground --kill-after=30 4200)
# The arithmetic of the method, every bundled config, and one run from the command line.
FAST     := $(addprefix tests/aegpo/,advantages allocation entropy exploration objectives prompts) \
            $(addprefix tests/aegpo/,rollout sde study) tests/test_configs.py::test_a_config_builds \
            tests/test_configs.py::test_a_reward_from_the_current_folder_is_trained_on

BIN      := $(VENV)/bin
READY    := $(VENV)/.ready
PACKAGES := aegpo lightning_modules datamodules callbacks

# A shell that forbids bytecode would have every process compile torch anew, 17 s each.
unexport PYTHONDONTWRITEBYTECODE
export UV_TORCH_BACKEND
ifeq ($(strip $(UV_TORCH_BACKEND)),)
unexport UV_TORCH_BACKEND
endif

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast coverage gpu bench docs check format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY)  ## create .venv and install everything into it (train and test do this themselves)

train: $(READY)  ## score the bundled model, align it (about 5 minutes on 2 cores), score it again
	$(BIN)/aegpo fit --config $(CONFIG) $(ARGS)

# What holds out against the limit of its test (`timeout` in pyproject.toml) ends with all of them.
PYTEST    = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(LIMIT) \
            $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=20

test: $(READY)  ## run the tests, and name the slowest twenty
	$(PYTEST) $(PYTEST_ARGS)

# Not part of `test`: under a tracer the packages' own tests take a third longer.
coverage: $(READY)  ## the same with coverage of the packages, which is at least 90 %
	$(PYTEST) $(addprefix --cov=,$(PACKAGES)) --cov-report=term $(PYTEST_ARGS)

test-fast: $(READY)  ## run the method's arithmetic, the configs and one tiny training, in a minute
	$(PYTEST) -m "not slow" $(FAST) $(PYTEST_ARGS)

gpu: $(READY)  ## does all of it work on this card? A table in eight minutes (GPU_ARGS="--tiny" without one)
	$(BIN)/python benchmarks/gpu_check.py --json runs/gpu.json $(GPU_ARGS)

bench: $(READY)  ## what things cost: every table, small (BENCH_ARGS="trees" for one, whole)
	$(BIN)/python benchmarks $(BENCH_ARGS)

# Strictly: a link, an anchor or a name of the reference that is not there is an error.
docs: $(READY)  ## build the site into build/site, without a network; then read it with a browser
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "$(BIN)/python -m http.server --directory build/site 8000   serves it at http://127.0.0.1:8000"

# pydoclint in an environment of its own: its fork of docstring_parser has jsonargparse's file names.
check: $(READY)  ## lint, formatting, imports, types, docstrings, unused code, limits, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/uv tool run 'pydoclint>=0.6' $(PACKAGES) examples tools
	$(BIN)/vulture
	$(BIN)/python tools/check_limits.py
	$(BIN)/codespell $(PACKAGES) examples tools tests docs configs *.md

format: $(READY)  ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* *.egg-info
	find $(PACKAGES) examples tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation starts again, and is older than
# pyproject.toml as soon as a dependency changes.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is older than Python 3.10; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "error: $(PYTHON) has no venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[dev]'
	@touch $@
