PYTHON ?= python3
PYTEST_ARGS ?= -n 2
BIN := .venv/bin
INSTALLED := .venv/.installed
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Set up .venv, then rotate every shipped model's q and k and print the accuracy table
	$(BIN)/rope-kernels demo

test: $(READY) ## Set up .venv, then run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@sources=$$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.inc' 2>/dev/null); \
	if [ -n "$$sources" ]; then $(BIN)/clang-format --dry-run --Werror $$sources; fi

format: $(READY) ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@sources=$$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.inc' 2>/dev/null); \
	if [ -n "$$sources" ]; then $(BIN)/clang-format -i $$sources; fi

clean: ## Remove .venv and everything that was built or cached
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .triton_cache
	rm -f rope_kernels/*.so
	find rope_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(INSTALLED) pyproject.toml $(wildcard setup.py csrc/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/rope-kernels info
	@touch $@

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
