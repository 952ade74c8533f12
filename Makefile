# The two main commands are `make demo` and `make test`. Both install what they need into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# A CPU build. If the package index would install torch with gigabytes of CUDA libraries, the setup stops with an error;
# then name a CPU build: make test TORCH=/path/to/torch-2.13.0+cpu.whl
TORCH ?= torch==2.13.0

# The native kernels are built if there are a C++ compiler and the Python headers; NATIVE=off leaves them out.
HEADERS := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
NATIVE ?= $(if $(and $(shell command -v $(CXX) 2>/dev/null),$(wildcard $(HEADERS)/Python.h)),on,off)
# Explicit, so that kernels that do not compile are an error: a plain pip install would leave them out.
BUILD := -Cwheel.cmake=$(if $(filter on,$(NATIVE)),true,false)
# The fastest precision of the back end that auto selects on a CPU: the native kernels do not compute the paper's network in fp16.
DEMO_PRECISION := $(if $(filter on,$(NATIVE)),fp32,fp16)
# Interpreters that wheels are built for.
PYTHONS ?= $(PYTHON)
# Triton for test-architectures: the installed one, or another such as TRITON=triton==3.6.0.
TRITON ?= triton>=3.6
# Seconds that each sanitized build spends on random sizes, strides and thread counts.
FUZZ_SECONDS ?= 60
FUZZ_COUNT ?= 500
FUZZ_SEED ?= 20261129

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CLOCK = date +%s

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-fuzz test-architectures lint wheel wheels native test-sanitizers test-aarch64 templates samples clean

help:  ## List the targets.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.base  ## Install, build an engine, fuse the sample pairs and write a montage.
	@$(BIN)/refusion-edge build --task ir_vis --precision $(DEMO_PRECISION) --output demo/ir_vis-$(DEMO_PRECISION) --overwrite
	@echo
	@$(BIN)/refusion-edge demo --bundle demo/ir_vis-$(DEMO_PRECISION) --output demo --overwrite
	@echo "Shell:   . $(BIN)/activate"

test: $(VENV)/.test  ## Install the test dependencies and run the tests, all but the slow ones.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(ARGS)

test-all: $(VENV)/.test  ## Run every test.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fuzz: $(VENV)/.test  ## Damage files of every format FUZZ_COUNT times, from FUZZ_SEED, and read them within limits.
	REFUSION_EDGE_FUZZ_COUNT=$(FUZZ_COUNT) REFUSION_EDGE_FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest tests/fuzz $(ARGS)

test-architectures: $(VENV)/.test  ## Run the GPU kernels in Triton's interpreter and compile them for every architecture.
	@$(PIP) install '$(TRITON)'
	REFUSION_EDGE_ARCHITECTURES=sm_80,sm_86,sm_87,sm_89,sm_90,sm_110,sm_120 $(BIN)/python -m pytest tests/kernels tests/export/targets/test_ptx.py $(ARGS)

lint: $(VENV)/.lint  ## Check lint, format, types and Dockerfiles.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint examples/docker/*.Dockerfile

wheel:  ## Build the wheel with and without the native kernels, and try both in a clean environment without torch.
	$(PYTHON) .ci/check_wheel.py

wheels:  ## Build manylinux wheels with the native kernels for x86-64 and aarch64 into dist (PYTHONS=python3.10,python3.12).
	$(PYTHON) .ci/build_wheels.py --output dist --pythons $(PYTHONS)

native: $(VENV)/.base  ## Recompile and install the native kernels (needs a C++ compiler).
	@$(PIP) install --editable . -Cwheel.cmake=true

DRIVER = cmake -S . -B build/$(1) -DREFUSION_EDGE_LIBRARY=OFF -DREFUSION_EDGE_DRIVER=ON $(2) && cmake --build build/$(1) --parallel 2

test-sanitizers: build/vectors  ## Run the native kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
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

templates: $(VENV)/.test  ## Retrace the ONNX templates that ship with the package.
	$(BIN)/python -m refusion_edge.export.graph.trace --output refusion_edge/network/graphs

samples: $(VENV)/.base  ## Rerender the sample pairs that ship with the package.
	$(BIN)/python examples/render_samples.py --output refusion_edge/images/samples

clean:  ## Remove all build products and environments.
	rm -rf $(VENV) build dist demo bundles .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamp files: each environment is set up once, and again if the project's requirements change.
$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "this is Python %d.%d, and 3.10 or newer is needed; run make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.base: $(VENV)/.venv pyproject.toml CMakeLists.txt $(wildcard kernels/*/csrc/*)
	@set -e; started=$$($(CLOCK)); echo "Installing into $(VENV) ..."; $(PIP) install --editable . $(BUILD); \
		echo "Installed in $$(( $$($(CLOCK)) - started )) s"; echo
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@$(BIN)/python .ci/install_torch.py '$(TORCH)'
	@$(PIP) install --group test --editable '.[export,eval,stream,webrtc,openvino,rtx,triton,fused,cluster]' $(BUILD)
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@$(PIP) install --group lint
	@touch $@
