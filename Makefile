# Two commands do everything: `make demo` and `make test`. Both set up what they need in $(VENV).

PYTHON ?= python3
VENV ?= .venv
# A CPU build. Where the package index serves torch with gigabytes of CUDA libraries, the set-up stops and says so;
# then name a CPU build here: make test TORCH=/path/to/torch-2.13.0+cpu.whl
TORCH ?= torch==2.13.0

# Where a C++ compiler and Python's headers are, the native kernels are built, too; NATIVE=off leaves them out.
HEADERS := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
NATIVE ?= $(if $(and $(shell command -v $(CXX) 2>/dev/null),$(wildcard $(HEADERS)/Python.h)),on,off)
BUILD := $(if $(filter on,$(NATIVE)),-Cwheel.cmake=true)
# What auto takes on a CPU: the native kernels do not compute in fp16.
DEMO_PRECISION := $(if $(filter on,$(NATIVE)),fp32,fp16)
# What test-architectures compiles and interprets with: the Triton that is installed, unless another is named (triton==3.6.0).
TRITON ?= triton>=3.6
# Seconds of random sizes, strides and threads in each sanitized build.
FUZZ_SECONDS ?= 60

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CLOCK = date +%s

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-architectures lint wheel native test-sanitizers test-aarch64 templates samples clean

help:  ## List the targets.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.base  ## Install, build an engine, fuse the sample pairs, write a montage.
	@$(BIN)/refusion-edge build --task ir_vis --precision $(DEMO_PRECISION) --output demo/ir_vis-$(DEMO_PRECISION)
	@echo
	@$(BIN)/refusion-edge demo --bundle demo/ir_vis-$(DEMO_PRECISION) --output demo
	@echo "Shell:   . $(BIN)/activate"

test: $(VENV)/.test  ## Install what the tests need and run them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-all: $(VENV)/.test  ## Run every test.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-architectures: $(VENV)/.test  ## Run the GPU kernels in Triton's interpreter and compile them for every architecture.
	@$(PIP) install '$(TRITON)'
	REFUSION_EDGE_ARCHITECTURES=sm_80,sm_86,sm_87,sm_89,sm_90,sm_110,sm_120 $(BIN)/python -m pytest tests/kernels tests/export/targets/test_ptx.py $(ARGS)

lint: $(VENV)/.lint  ## Lint, format check and strict types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel:  ## Build the wheel, check its files, and use it in a clean environment without torch.
	$(PYTHON) .ci/check_wheel.py

native: $(VENV)/.base  ## Compile the native kernels anew and install them (needs a C++ compiler).
	@$(PIP) install --editable . -Cwheel.cmake=true

DRIVER = cmake -S . -B build/$(1) -DREFUSION_EDGE_PYTHON=OFF -DREFUSION_EDGE_DRIVER=ON $(2) && cmake --build build/$(1) --parallel 2

test-sanitizers: build/vectors  ## Run the native kernels under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer.
	$(call DRIVER,sanitize-address,-DREFUSION_EDGE_SANITIZE=address)
	build/sanitize-address/native_driver build/vectors $(FUZZ_SECONDS)
	$(call DRIVER,sanitize-undefined,-DREFUSION_EDGE_SANITIZE=undefined)
	build/sanitize-undefined/native_driver build/vectors $(FUZZ_SECONDS)
	$(call DRIVER,sanitize-thread,-DREFUSION_EDGE_SANITIZE=thread)
	build/sanitize-thread/native_driver build/vectors $(FUZZ_SECONDS)

test-aarch64: build/vectors  ## Cross-compile the native kernels for aarch64 and run them in an emulator.
	$(call DRIVER,aarch64,-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/.ci/aarch64.cmake)
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/native_driver build/vectors $(FUZZ_SECONDS)

build/vectors: $(VENV)/.test tests/kernels/cpu/native/vectors.py
	$(BIN)/python -m tests.kernels.cpu.native.vectors build/vectors.partial
	@rm -rf $@ && mv build/vectors.partial $@

templates: $(VENV)/.test  ## Trace the ONNX templates that ship with the package anew.
	$(BIN)/python -m refusion_edge.export.graph.trace --output refusion_edge/network/graphs

samples: $(VENV)/.base  ## Render the sample pairs that ship with the package anew.
	$(BIN)/python examples/render_samples.py --output refusion_edge/images/samples

clean:  ## Remove everything that was made here.
	rm -rf $(VENV) build dist demo bundles .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps: each environment is set up once, and again when the project's requirements change.
$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "expected Python 3.10 or newer, got %d.%d; run make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.base: $(VENV)/.venv pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/csrc/*)
	@set -e; started=$$($(CLOCK)); echo "Installing into $(VENV) ..."; $(PIP) install --editable . $(BUILD); \
		echo "Installed in $$(( $$($(CLOCK)) - started )) s"; echo
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@$(BIN)/python .ci/install_torch.py '$(TORCH)'
	@$(PIP) install --group test --editable '.[export,eval,stream,openvino,rtx,triton,fused]' $(BUILD)
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@$(PIP) install --group lint
	@touch $@
