# Every target sets itself up: tools/bootstrap.py makes .venv the first time and reuses it afterwards.
# Without make: python3 tools/bootstrap.py demo   (or test, lint, env)
# Another Python: make demo PYTHON=python3.12     Arguments: make demo ARGS="--seed 1"
PYTHON ?= python3
ARGS ?=
BOOTSTRAP = "$(PYTHON)" tools/bootstrap.py

.PHONY: help demo test lint env clean
.NOTPARALLEL:

help:
	@echo 'make demo    train, evaluate and look at a small detector on the embedded dataset'
	@echo 'make test    ruff and pytest'
	@echo 'make lint    ruff alone'
	@echo 'make env     only the virtual environment in .venv'
	@echo 'make clean   remove .venv and caches (work_dirs and data stay)'

demo:
	@$(BOOTSTRAP) demo $(ARGS)

test:
	@$(BOOTSTRAP) test $(ARGS)

lint:
	@$(BOOTSTRAP) lint $(ARGS)

env:
	@$(BOOTSTRAP) env $(ARGS)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
