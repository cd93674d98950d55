PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist worksteal
CPP_BUILD ?= build/cmake
CPP_OBJECTS ?= $(CURDIR)/build/native
BIN := .venv/bin
# Compiling Python's files when they are installed takes as long as installing them; what is imported is compiled then.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-compile
VENV := .venv/.created
INSTALLED := .venv/.installed
READY := .venv/.ready
BUILD_SOURCES := pyproject.toml setup.py $(shell find csrc native_build -type f -not -name "*.pyc")
# The demo runs on this machine alone: fewer packages, and kernels for this CPU and this GPU.
DEMO_INSTALLED := .venv/.demo-installed
DEMO_READY := $(or $(wildcard $(READY)),.venv/.demo-ready)
HOST := build/host/venv
ENGINES := build/engines/venv
SITE := build/site-check/venv
CPP_SOURCES := $(shell find csrc tests/cpp tests/emulation/cuda -name "*.c" -o -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-calls test-full test-engines test-oldest test-newest cpp-test bench bench-check gpu-check
.PHONY: host-check mutants docs docs-check lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO_READY) ## Set up .venv for this machine, then rotate every shipped model's q and k and print the accuracy table
	@echo "Rotating every shipped model's q and k: about 10 s"
	@$(BIN)/rope-kernels demo

test: $(READY) cpp-test ## Set up .venv, then run the tests, those in C++ first
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-calls: $(READY) cpp-test ## What `make test` leaves out, but for emulated kernels: all models, and calls past the dispatcher
	$(MAKE) cpp-test CPP_BUILD=build/cmake-full CPP_OBJECTS=
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m full --ignore=tests/backends --ignore=tests/emulation
	$(BIN)/python -m pytest $(PYTEST_ARGS) --direct=compared tests/api tests/ops
	$(BIN)/python -m pytest $(PYTEST_ARGS) --direct=refused tests/api tests/integrations

test-full: test-calls ## All that `make test` leaves out: every case on every emulated GPU, too
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m full tests/backends tests/emulation

test-all: PYTEST_ARGS += -m ""
test-all: test ## The same with every case that the default run leaves out

cpp-test: $(READY) ## Build the C++ library without torch and its Python module, and run the C++ tests
	@$(BIN)/cmake -S . -B $(CPP_BUILD) -G Ninja --log-level=WARNING "-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja" "-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python" "-DROPE_KERNELS_OBJECTS=$(CPP_OBJECTS)"
	$(BIN)/ninja -C $(CPP_BUILD) -j $$(nproc)
	$(BIN)/ctest --test-dir $(CPP_BUILD) -j $$(nproc) --output-on-failure

bench: $(READY) ## Measure against peers and memory floors, and write benchmarks/results/<processor>/
	@mkdir -p build
	$(BIN)/python -m pytest benchmarks -rs --benchmark-quiet --benchmark-json=build/benchmark.json
	$(BIN)/python -m benchmarks.report

bench-check: $(READY) ## Compare the last `make bench` with the committed baseline of the same processor
	$(BIN)/python -m benchmarks.report.regressions

gpu-check: $(READY) ## On a machine with a CUDA GPU: every case on it, beside the emulator, in graphs; then its speed
	$(BIN)/python tests/gpu/check.py $(GPU_CHECK_ARGS)

host-check: $(READY) $(HOST)/.created ## Opt-in, downloads a CUDA torch: what CUDA calls do and cost on the host, over a GPU that does nothing
	$(HOST)/bin/python tests/host/run.py $(HOST_CHECK_ARGS)

test-engines: $(READY) $(ENGINES)/.created ## Opt-in, downloads vLLM, torchtitan, onnxruntime, diffusers, timm: their layers and models on these kernels
	$(ENGINES)/bin/python tests/engines/run.py $(ENGINES_ARGS)

test-oldest test-newest: test-%: build/%/venv/.created
	build/$*/venv/bin/python tests/versions/run.py $* $(PYTEST_ARGS)

test-oldest: ## Opt-in, downloads a torch: the tests beside the oldest torch, Triton and others that are allowed
test-newest: ## Opt-in, downloads a torch: the tests beside the newest torch and Triton

mutants: $(READY) ## Plant mistakes in copies of the kernels, one at a time, and list those that the tests miss
	$(BIN)/python tests/mutants/run.py $(MUTANTS_ARGS)

docs: $(READY) .venv/.docs ## Build the pages into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-check: docs $(SITE)/.created ## Opt-in, needs chromium: look at the pages in a browser, at two widths, light and dark
	ROPE_KERNELS_TEST_SITE=1 $(SITE)/bin/python -m pytest -q tests/site

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(READY) ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

clean: ## Remove .venv and everything that was built or cached
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .triton_cache
	rm -f rope_kernels/*.so rope_kernels/_why_not_native.txt
	find rope_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Beside the packages of .venv: vLLM asks for another transformers than the one that it is tested with here.
$(ENGINES)/.created: tests/engines/requirements.txt $(INSTALLED)
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -c 'import sysconfig; from pathlib import Path; own = Path(sysconfig.get_path("purelib")); (own / "beside.pth").write_text(str(Path(".venv", *own.parts[-3:]).resolve()) + "\n")'
	$(ENGINES)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps -r tests/engines/requirements.txt
	@touch $@

$(SITE)/.created: tests/site/requirements.txt $(INSTALLED)
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -c 'import sysconfig; from pathlib import Path; own = Path(sysconfig.get_path("purelib")); (own / "beside.pth").write_text(str(Path(".venv", *own.parts[-3:]).resolve()) + "\n")'
	$(SITE)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps -r tests/site/requirements.txt
	@touch $@

$(HOST)/.created: tests/host/requirements.txt
	$(PYTHON) -m venv $(HOST)
	$(HOST)/bin/python -m pip --quiet --disable-pip-version-check install -r tests/host/requirements.txt
	@touch $@

build/%/venv/.created: pyproject.toml requirements.txt tests/versions/requirements.py
	$(PYTHON) -m venv build/$*/venv
	build/$*/venv/bin/python tests/versions/requirements.py $* > build/$*/requirements.txt
	build/$*/venv/bin/python -m pip --quiet --disable-pip-version-check install --upgrade -r build/$*/requirements.txt
	@touch $@

.venv/.docs: docs/requirements.txt $(INSTALLED)
	$(PIP) -r docs/requirements.txt
	@touch $@

.venv/.demo-ready: $(DEMO_INSTALLED) $(BUILD_SOURCES)
	@echo "Compiling the kernels for this machine, log in build/native/build.log: about 30 s on two cores, twice that with CUDA"
	@rm -f $@
	@ROPE_KERNELS_ISAS=$${ROPE_KERNELS_ISAS-native} TORCH_CUDA_ARCH_LIST=$${TORCH_CUDA_ARCH_LIST-native} $(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(READY): $(INSTALLED) $(BUILD_SOURCES)
	@echo "Compiling the kernels, log in build/native/build.log: about a minute on two cores, 4 to 6 with CUDA"
	@rm -f $@ .venv/.demo-ready
	@$(PIP) --no-build-isolation --no-deps --editable .
	@$(BIN)/rope-kernels info
	@touch $@

$(DEMO_INSTALLED): requirements-demo.txt requirements.txt | $(VENV)
	@echo "Installing torch, transformers and others for the demo: about 20 s, more where they have to be downloaded"
	@$(PIP) -r requirements-demo.txt
	@touch $@

$(INSTALLED): requirements.txt | $(VENV)
	@echo "Installing torch and the tools of the tests: about a minute, more where they have to be downloaded"
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV):
	@echo "Making .venv: about 5 s"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv
	@touch $@
