# Each target sets itself up: a fresh machine needs Python 3.10 or newer and make, nothing else.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
ZOO := .venv-zoo
DATA ?= data
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tests and the demo use one thread a process: on few cores more threads only get in each other's way.
export OMP_NUM_THREADS ?= 1
export WANDB_MODE ?= offline

.PHONY: help demo sweep-demo test test-extras test-all test-clients zoo lint format typecheck benchmarks tables docs \
	install recipes-check clean

help:
	@echo "make demo        train, prune, quantize, export and verify a model on the bundled digits"
	@echo "make sweep-demo  25 ways to prune and quantize a model, compared on one page; again: what is missing"
	@echo "make test        run the tests"
	@echo "make test-extras  run the tests of optional packages, which it installs"
	@echo "make test-all    both"
	@echo "make test-clients  train with fourteen libraries that use Lightning, each in an environment of its own"
	@echo "make zoo         compress public architectures, what is missing in benchmarks/results/zoo.json"
	@echo "make lint        check style, import contracts, and what .ci/house.py lists"
	@echo "make format      fix style"
	@echo "make typecheck   check types          make benchmarks  measure anew, an hour at a time (DATA=~/data)"
	@echo "make tables      put the measured numbers into README and docs"
	@echo "make docs        build the documentation into build/docs"
	@echo "make recipes-check RECIPE=digits_cnn_sparse80_w8a8     run a recipe, compare with its numbers"
	@echo "make install     make .venv           make clean       remove it"

demo: $(INSTALLED)
	$(BIN)/lightning-compress train experiment=demo

sweep-demo: $(INSTALLED)
	$(BIN)/lightning-compress train -m sweep=demo
	$(BIN)/lightning-compress compare multirun/digits_demo --format packed --max-drop 1% \
		--html multirun/digits_demo/compare.html --markdown multirun/digits_demo/compare.md

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Tests of what optional packages, a browser (Chromium) and npm are needed for.
test-extras: $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,openvino,executorch,compressed-tensors,joblib,optuna,ray,submitit,tensorboard,wandb-workspaces]"
	$(BIN)/python -m pip install --no-deps -r tests/extras/requirements-litert.txt
	$(BIN)/python -m pytest tests/extras $(ARGS)

# Everything: the core without optional packages first, then these.
test-all: test test-extras

# Environments are made on the first run, in .venv-clients; ARGS: --only chemprop darts
test-clients: $(INSTALLED)
	$(BIN)/python benchmarks/clients.py --cache .venv-clients --write --page $(ARGS)

# In an environment of its own. ultralytics names a graphical opencv, which containers cannot load. ARGS: --only, --failed
zoo: $(ZOO)/.installed
	$(ZOO)/bin/python benchmarks/zoo.py --write --page $(ARGS)

$(ZOO)/.installed: benchmarks/requirements-zoo.txt
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -c "import torch" 2>/dev/null || $(ZOO)/bin/python -m pip install $(TORCH)
	$(ZOO)/bin/python -m pip install -c constraints.txt -e ".[dev]" -r benchmarks/requirements-zoo.txt
	$(ZOO)/bin/python -m pip install --no-deps ultralytics==8.4.190 ultralytics-thop==2.2.3
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports importlinter.ini
	$(BIN)/python .ci/house.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(INSTALLED)
	$(BIN)/mypy

# Hours in all, most of them for the accuracies, which need the data sets: make benchmarks DATA=~/data. Each call ends in
# under an hour, with exit code 75 of the script while parts are left; the next call goes on. ARGS: parts, or --list.
benchmarks: $(INSTALLED)
	$(BIN)/python benchmarks/parts.py --root $(DATA) $(ARGS); code=$$?; $(BIN)/python benchmarks/tables.py; exit $$code

tables: $(INSTALLED)
	$(BIN)/python benchmarks/tables.py

docs: $(INSTALLED)
	$(BIN)/python -c "import furo, latex2mathml, myst_parser" 2>/dev/null || \
		$(BIN)/python -m pip install -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

recipes-check: $(INSTALLED)
	$(BIN)/python recipes/check.py recipes/$(RECIPE) $(ARGS)

install: $(INSTALLED)

# A torch that is there already, for example one for another accelerator, stays.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(ZOO) .venv-clients
