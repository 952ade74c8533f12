# Two commands do everything: `make demo` and `make test`. Both set up what they need in $(VENV).

PYTHON ?= python3
VENV ?= .venv
# A CPU build. Where the package index serves torch with gigabytes of CUDA libraries, the set-up stops and says so;
# then name a CPU build here: make test TORCH=/path/to/torch-2.13.0+cpu.whl
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CLOCK = date +%s

.DEFAULT_GOAL := help
.PHONY: help demo test test-architectures lint wheel templates samples clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/.base  ## Install, build an fp16 engine, fuse the sample pairs, write a montage.
	@$(BIN)/refusion-edge build --task ir_vis --precision fp16 --output demo/ir_vis-fp16
	@echo
	@$(BIN)/refusion-edge demo --bundle demo/ir_vis-fp16 --output demo
	@echo "Shell:   . $(BIN)/activate"

test: $(VENV)/.test  ## Install what the tests need and run them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-architectures: $(VENV)/.test  ## Compile the GPU kernels for every architecture and hold their resources against the limits.
	@$(PIP) install 'triton>=3.6'
	REFUSION_EDGE_ARCHITECTURES=sm_80,sm_86,sm_87,sm_89,sm_90,sm_110,sm_120 $(BIN)/python -m pytest tests/kernels/test_architectures.py $(ARGS)

lint: $(VENV)/.lint  ## Lint, format check and strict types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel:  ## Build the wheel, check its files, and use it in a clean environment without torch.
	$(PYTHON) .ci/check_wheel.py

templates: $(VENV)/.test  ## Trace the ONNX templates that ship with the package anew.
	$(BIN)/python -m refusion_edge.export.trace --output refusion_edge/graphs

samples: $(VENV)/.base  ## Render the sample pairs that ship with the package anew.
	$(BIN)/python examples/render_samples.py --output refusion_edge/samples

clean:  ## Remove everything that was made here.
	rm -rf $(VENV) build dist demo bundles .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps: each environment is set up once, and again when the project's requirements change.
$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "expected Python 3.11 or newer, got %d.%d; run make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.base: $(VENV)/.venv pyproject.toml
	@set -e; started=$$($(CLOCK)); echo "Installing into $(VENV) ..."; $(PIP) install --editable .; \
		echo "Installed in $$(( $$($(CLOCK)) - started )) s"; echo
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@$(BIN)/python .ci/install_torch.py '$(TORCH)'
	@$(PIP) install --group test --editable '.[export,eval]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@$(PIP) install --group lint
	@touch $@
