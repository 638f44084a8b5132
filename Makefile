# Two commands do everything on a machine that has Python, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A few tests run at once; one thread each is faster than several fighting.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Other processors as far as one can play them: vector widths of PyTorch, code paths of MKL and oneDNN, threads.
CAPABILITIES := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2,ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx512
CAPABILITIES += MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 TEST_THREADS=2,OMP_NUM_THREADS=2,MKL_NUM_THREADS=2
TESTS ?= tests

.PHONY: help demo test setup lint types docs tests capabilities lowest soak clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(BIN)/python:
	@echo "==> creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-program: $(BIN)/python pyproject.toml constraints.txt
	@echo "==> installing gritvq with its program into $(VENV) (a minute or two)"
	@$(PIP) --editable '.[train,images]'
	@touch $@

$(VENV)/.installed-development: $(BIN)/python pyproject.toml constraints.txt
	@echo "==> installing gritvq with the development tools into $(VENV) (a minute or two)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed-program

demo: $(VENV)/.installed-program  ## train a tokenizer on photographs and show what it does
	@echo "==> gritvq demo (about two minutes; results in runs/demo)"
	@$(BIN)/gritvq demo

setup: $(VENV)/.installed-development  ## install everything needed for work on the code

lint: $(VENV)/.installed-development  ## check style and format
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-development  ## check types
	@echo "==> mypy"
	@$(BIN)/mypy

docs: $(VENV)/.installed-development  ## build the documentation into site/
	@echo "==> mkdocs"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tests: $(VENV)/.installed-development  ## run the tests alone
	@echo "==> pytest"
	@$(THREADS) $(BIN)/pytest -q -n 2 --durations=5

test: lint types docs tests  ## lint, types, docs, all tests

capabilities: $(VENV)/.installed-development  ## run the tests as on other processors (TESTS="files" for some)
	@for settings in $(CAPABILITIES); do \
		settings=$$(echo $$settings | tr , ' '); echo "==> pytest with $$settings"; \
		env $(THREADS) $$settings $(BIN)/pytest -q -n 2 $(TESTS) || exit 1; \
	done

LOWEST := .venv-lowest
EXTRAS := $(addprefix --extra ,train images hub items search text transport export dev)

lowest: $(VENV)/.installed-development  ## run the tests with the lowest versions that are declared (TESTS="files" for some)
	@echo "==> installing the lowest declared versions into $(LOWEST), with the torch and triton of constraints.txt"
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@grep -E '^(torch|triton)==' constraints.txt > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --python $(LOWEST)/bin/python $(EXTRAS) \
		--constraint $(LOWEST)/constraints.txt --no-header --no-annotate --output-file $(LOWEST)/lowest.txt pyproject.toml
	@sed -i '/^tf-/d' $(LOWEST)/lowest.txt  # TensorFlow, which an old TensorBoard names and nothing here uses
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(LOWEST)/lowest.txt
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(THREADS) $(LOWEST)/bin/python -m pytest -q -n 2 -W default $(TESTS)

soak: $(VENV)/.installed-development  ## run the tests that take long, also those on Ray
	@$(PIP) --editable '.[distributed]'
	@echo "==> pytest -m soak"
	@$(THREADS) $(BIN)/pytest -q -m soak

clean:  ## remove what was built (not runs/)
	@echo "==> removing $(VENV), $(LOWEST), site and caches"
	@rm -rf $(VENV) $(LOWEST) site .mypy_cache .pytest_cache .ruff_cache
