# Assay: `make demo` and `make test` do all their own set-up. `make help` lists the rest.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
TORCH := 2.13.0
BIN := .venv/bin
# One thread for numerics: the demo and the tests run several processes side by side.
export OMP_NUM_THREADS := 1

.PHONY: help demo test check bench mutants clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: .venv/.ready ## train across three holders on real data; leaves bundle and report in ./assay-demo
	$(BIN)/assay demo

test: .venv/.ready ## the gate and all tests
	$(BIN)/python .ci/gate.py --slow

check: .venv/.ready ## the gate and the fast tests: format, lint, layers, types, tests, wheel contents
	$(BIN)/python .ci/gate.py

bench: .venv/.ready ## training speed against Opacus as in its tutorial and plain PyTorch
	$(BIN)/python benchmarks/training.py

mutants: .venv/.ready ## plant bugs, one at a time, in a copy: a test must notice each
	$(BIN)/python .ci/mutants.py

clean: ## remove the environment and build outputs
	rm -rf .venv build dist

# Torch first, and in its CPU build where one is to be had: the default Linux build brings gigabytes of CUDA.
.venv/.ready: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "assay: needs Python 3.11, 3.12 or 3.13 on the PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --constraint requirements.lock \
			--index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --constraint requirements.lock 'torch==$(TORCH)'
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
