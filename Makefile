# make demo    train a NeRF on the embedded scene for a minute, with and without the native kernels; demo-out/report.html
# make test    lint and every test, in a virtual environment of its own
# make bench   every benchmark beside its baselines; JSON and a plot
# make gate    instruction counts of the CPU kernels against their budgets, under valgrind
# make ext     rebuild the native module in place, for work on the kernels
VENV ?= .venv
PYTHON ?= python3
# The torch to install when the environment has none; an installed one is never replaced.
TORCH ?= torch==2.13.0
DATA ?= examples/still_life
SECONDS ?= 60
BIN := $(VENV)/bin

.PHONY: venv torch install develop test lint format bench gate demo ext clean

venv: $(BIN)/activate
$(BIN)/activate:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

torch: venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)

# What it takes to run the models, and what it takes to work on them.
install: torch
	$(BIN)/python -m pip install --quiet -e '.[all]'
develop: torch
	$(BIN)/python -m pip install --quiet -e '.[dev]'

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/typos

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

test: lint
	$(BIN)/cmake -S . -B build/core -GNinja -DFASTVFX_PYTHON=OFF -DFASTVFX_CUDA=off -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DFASTVFX_BENCH_DRIVER=ON
	$(BIN)/cmake --build build/core
	$(BIN)/ctest --test-dir build/core --output-on-failure
	$(BIN)/python benchmarks/gate.py
	FASTVFX_BUILT=1 $(BIN)/python -m pytest

# One file, another device, a longer run: benchmarks/run.py --help
bench: develop
	$(BIN)/python benchmarks/run.py

# Instructions that the CPU kernels execute, against benchmarks/budgets.json; skipped, and said so, without valgrind.
gate: develop
	$(BIN)/python benchmarks/gate.py

# The trainings are the same but for the kernels; the pictures of both are rendered with the native ones.
# It runs on the CPU, so it is not kept waiting by a compilation for GPUs; FASTVFX_CUDA=auto changes that.
demo: export FASTVFX_CUDA := $(or $(FASTVFX_CUDA),off)
demo: install
	rm -rf demo-out/native demo-out/reference
	$(BIN)/fastvfx nerf train $(DATA) --out demo-out/native --max-seconds $(SECONDS)
	$(BIN)/fastvfx nerf train $(DATA) --out demo-out/reference --max-seconds $(SECONDS) --backend reference
	$(BIN)/fastvfx nerf report demo-out/native demo-out/reference --out demo-out/report.html

ext:
	$(PYTHON) setup.py --quiet build_ext --inplace

clean:
	rm -rf build fastvfx/_C*.so fastvfx/_C*.pyd *.egg-info
