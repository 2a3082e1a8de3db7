# make toy    the Linear CDE on the toy task at the paper's scale, Figure 1, and the verdict
# make test   lint and tests
# make clean  remove the environment and generated data; results stay
#
# Both make .venv where it is missing. PYTHON (3.11 or later) and RESULTS can be set:
#   make toy PYTHON=python3.11 RESULTS=results/second_try

PYTHON ?= python3
RESULTS ?= results/local

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-lock.txt
LOCKED := pyproject.toml requirements-lock.txt

.PHONY: toy test clean

toy: .venv/jax.installed
	$(BIN)/python run_experiment.py -m LCDE -e toy --results-dir $(RESULTS)
	$(BIN)/python plot_toy.py --results-dir $(RESULTS)
	$(BIN)/python compare_to_paper.py --results-dir $(RESULTS)

test: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv .venv

.venv/jax.installed: $(LOCKED) | $(BIN)/python
	@echo "installing the JAX wing into .venv (a minute or two)"
	$(INSTALL) '.[jax]'
	@touch $@

.venv/dev.installed: $(LOCKED) | $(BIN)/python
	@echo "installing both wings and the test tools into .venv (a few minutes)"
	$(INSTALL) '.[jax,torch,dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info data_dir/toy_data data_dir/illusion
	find . -name __pycache__ -prune -exec rm -rf {} +
