# Every target sets itself up: tools/bootstrap.py creates .venv the first time and reuses it.
# Without make: python3 tools/bootstrap.py demo   (or test, lint, env)
# Another Python: make demo PYTHON=python3.12    Arguments: make demo ARGS="--seed 1"
# On the maintained fork, in .venv-onedl: make test MM=onedl
PYTHON ?= python3
ARGS ?=
MM ?= mm
BOOTSTRAP = MM="$(MM)" "$(PYTHON)" tools/bootstrap.py

.PHONY: help demo test lint env clean
.NOTPARALLEL:

help:
	@echo 'make demo    train, evaluate and inspect a small detector on the synthetic dataset'
	@echo 'make test    lint, then pytest on all cores'
	@echo 'make lint    ruff and mypy'
	@echo 'make env     the virtual environment in .venv, or .venv-onedl'
	@echo 'make clean   remove the environments and caches (work_dirs and data stay)'

demo:
	@$(BOOTSTRAP) demo $(ARGS)

test:
	@$(BOOTSTRAP) test $(ARGS)

lint:
	@$(BOOTSTRAP) lint $(ARGS)

env:
	@$(BOOTSTRAP) env $(ARGS)

clean:
	rm -rf .venv .venv-onedl build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
