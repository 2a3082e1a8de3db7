# make toy      the Linear CDE on the toy task at the paper's scale, Figure 1, and the verdict
# make figures  Figures 1 and 2, and the training curves of A5, from the results there are
# make check    does it agree with the paper? a table here, REPORT.md and report.html in the results
# make test     lint and tests
# make clean    remove the environment and generated data; results stay
#
# All but the last make .venv where it is missing. PYTHON (3.11 or later) and RESULTS can be set:
#   make toy PYTHON=python3.11 RESULTS=results/second_try

PYTHON ?= python3
toy: RESULTS ?= results/local
figures check: RESULTS ?= results

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-lock.txt
LOCKED := pyproject.toml requirements-lock.txt

.PHONY: toy figures check test clean

toy: .venv/jax.installed
	$(BIN)/python run_experiment.py -m LCDE -e toy --results-dir $(RESULTS)
	$(BIN)/python plot_toy.py --results-dir $(RESULTS)
	$(BIN)/python compare_to_paper.py --results-dir $(RESULTS)

# A folder that has neither kind of results is left to plot_toy.py, whose message says so.
figures: .venv/plots.installed
	if [ -d $(RESULTS)/outputs_toy ] || [ ! -d $(RESULTS)/outputs_A5 ]; then \
		$(BIN)/python plot_toy.py --results-dir $(RESULTS) --overlay published; fi
	if [ -d $(RESULTS)/outputs_A5 ]; then \
		$(BIN)/python plot_A5.py --results-dir $(RESULTS) --overlay published --curves; fi

check: .venv/plots.installed
	$(BIN)/python compare_to_paper.py --results-dir $(RESULTS) --report

test: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv .venv

.venv/plots.installed: $(LOCKED) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

.venv/jax.installed: $(LOCKED) | $(BIN)/python
	@echo "installing the JAX part into .venv (a minute or two)"
	$(INSTALL) -e '.[jax]'
	@touch $@

.venv/dev.installed: $(LOCKED) | $(BIN)/python
	@echo "installing both parts and the test tools into .venv (a few minutes)"
	$(INSTALL) -e '.[jax,torch,dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info data_dir/toy_data data_dir/illusion
	find . -name __pycache__ -prune -exec rm -rf {} +
