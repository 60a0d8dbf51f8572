# Everything here needs only Python 3.11 or newer and a package index; it all lives in .venv, made once.
#   make quickstart ARGS="max_steps=50 output_dir=run-short"   overrides for the training run
#   make test ARGS="tests/models -k decode"                    arguments for pytest
#   make PYTHON=python3.12 venv                                another interpreter
#   make PIP_FLAGS="--index-url ..." venv                      another index, e.g. one of CPU-only torch wheels

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=

VENV := .venv
# Run as modules: the scripts in bin/ carry the absolute path of the interpreter they were installed for.
RUN := $(VENV)/bin/python -m
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# One process per core with one thread each; tests of one file stay together, since they share what is built.
PARALLEL := --numprocesses auto --dist loadfile

# On one device, and with no config of the user's own, `accelerate launch` prints a page about the defaults it
# took and gives a CPU run a single thread. These flags say the same defaults aloud, with all the cores. With a
# config, or on several devices, nothing is added: accelerate decides. --quiet: no trace of the launcher itself
# after the run's own error message.
define LAUNCH_FLAGS
import os, torch
from accelerate.commands.config.config_args import default_config_file
devices = torch.accelerator.device_count()
if devices < 2 and not os.path.isfile(default_config_file):
    print("--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no", end=" ")
    if devices == 0:
        print("--num_cpu_threads_per_process", torch.get_num_threads())
endef
export LAUNCH_FLAGS

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help quickstart venv test test-slow test-gpu lint format docs figures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

quickstart: $(VENV)/.stamp-run  ## train configs/quickstart.yaml on built-in photographs (ARGS="key=value ...")
	@flags=$$($(VENV)/bin/python -c "$$LAUNCH_FLAGS") || exit 1; \
	set -x; $(RUN) accelerate.commands.launch --quiet $$flags scripts/train_vqgan.py --config configs/quickstart.yaml $(ARGS)

venv: $(VENV)/.stamp-dev  ## install the package and the developers' tools into .venv

test: export OMP_NUM_THREADS := 1
test: $(VENV)/.stamp-dev  ## run the fast tests, offline (ARGS="tests/models -k name")
	$(OFFLINE) $(RUN) pytest $(PARALLEL) -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.stamp-dev  ## run the slow tests: the long proofs, offline
	$(OFFLINE) $(RUN) pytest -m "slow and not gpu" $(ARGS)

test-gpu: $(VENV)/.stamp-dev  ## run the tests that need a CUDA device, offline; without one they are skipped
	$(OFFLINE) $(RUN) pytest -m gpu tests/gpu $(ARGS)

lint: $(VENV)/.stamp-dev  ## check style, format and types
	@failed=0; for tool in "ruff check ." "ruff format --check ." mypy; do \
	  echo "$$tool"; $(RUN) $$tool || failed=1; \
	done; exit $$failed

format: $(VENV)/.stamp-dev  ## reformat, and mend what ruff can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

docs: $(VENV)/.stamp-dev  ## build the documentation as a site in build/site, offline; broken links fail
	$(VENV)/bin/python docs/tools/reference.py
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

# One thread, so that the numbers do not depend on the number of cores.
FIGURES := latent_spaces kl_weight elbo divergences gradients latent_diffusion photographs failures
figures: $(VENV)/.stamp-run  ## draw the figures of docs/guide.md; the models stay in run-guide
	for name in $(FIGURES); do OMP_NUM_THREADS=1 $(VENV)/bin/python docs/figures/$$name.py || exit 1; done

clean:  ## remove .venv, caches and build outputs; your runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an install that failed or was interrupted is taken up again by the next make.
$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "latentae needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with  make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install its venv package (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.stamp-run: pyproject.toml | $(VENV)/bin/python
	@echo "Installing latentae and what it runs on into $(VENV): torch makes it a download of several GB, once"
	@[ -t 1 ] || quiet=--quiet; $(RUN) pip install $$quiet $(PIP_FLAGS) --editable .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@echo "Installing the developers' tools into $(VENV)"
	@[ -t 1 ] || quiet=--quiet; $(RUN) pip install $$quiet $(PIP_FLAGS) --editable '.[dev]'
	@touch $@
