# Two commands do all set-up: `make reproduce` and `make test`. VENV=path puts the environment elsewhere.
VENV ?= .venv
PYTHON ?= python3
PROFILE ?= quick
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.biasnb-ready
KILLS ?= 100
# `$(call install,BIN)`: uv, where there is one, installs in a fraction of the time.
install = $(if $(shell command -v uv),uv pip install --quiet --python $(1)/python,$(1)/python -m pip install --quiet)
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: reproduce test faults chaos audit lint figures report bench gpu lab tour docs clean install

reproduce: $(READY)  ## every notebook with PROFILE=quick; FRESH=1 starts anew; SET="field=value ..." changes settings
	$(BIN)/python -m biasnb reproduce --profile $(PROFILE) $(if $(FRESH),--fresh) $(SET)

test: $(READY)  ## all tests, one process per core
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL)

faults: $(READY)  ## the tests of faults, with many more kills than `make test`, and docs/faults.md from their results
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL) -m "fault or campaign" --campaign --faults=docs/faults.md

chaos: $(READY)  ## kill processes of small suites KILLS times at random moments (SEED=) and compare with an undisturbed run
	$(BIN)/python tests/chaos.py --kills $(KILLS) $(if $(SEED),--seed $(SEED)) $(SET)

audit: $(READY)  ## known vulnerabilities of the exact versions; needs the network
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --no-deps --requirement constraints.txt

lint: $(READY)  ## style and spelling of package, tests, notebooks and pages, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m biasnb lint
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

# Records need no torch: where the suite's environment has not been made, one with the packages that draw is enough.
SMALL := $(VENV)-figures
DRAWING := click cloudpickle dask filelock matplotlib numpy pandas scipy seaborn tabulate
figures: $(if $(wildcard $(READY)),,$(SMALL)/.ready)  ## redraw figures/ and decide the claims from the records in results/
	$(if $(wildcard $(READY)),$(BIN),$(SMALL)/bin)/python -m biasnb figures

$(SMALL)/.ready: $(wildcard $(CONSTRAINTS))
	$(PYTHON) -m venv $(SMALL)
	$(call install,$(SMALL)/bin) $(DRAWING) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	touch $@

report: $(READY)  ## runs/PROFILE/report: the executed notebooks and the claims as a static site
	$(BIN)/python -m biasnb report --profile $(PROFILE)

bench: $(READY)  ## how fast this machine trains, beside the same networks from timm's parts, and where a run's time goes
	$(BIN)/python benchmarks/bench.py

gpu:  ## what only a GPU can show, in eight minutes: correctness, speed, runs; needs torch but not the environment
	$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --profile $(if $(filter quick,$(PROFILE)),full,$(PROFILE))

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

tour: $(READY)  ## the screenshots of docs/tour.md, made anew; needs Chromium
	$(BIN)/python tests/tour.py

docs: $(READY)  ## build/docs: the docstrings as pages
	$(BIN)/pdoc --output-directory build/docs --docformat google --no-show-source biasnb '!biasnb.__main__'

clean:  ## remove caches and build products; runs/, data/ and the environment stay (delete them yourself)
	rm -rf runs/cache build *.egg-info .pytest_cache .ruff_cache .import_linter_cache

install: $(READY)

# The environment follows pyproject.toml and the exact versions of CONSTRAINTS (CONSTRAINTS= takes the newest instead).
# One environment serves one checkout at a time: shared by VENV=path, it is pointed here when another checkout had it.
$(shell test "$$(cat $(READY) 2>/dev/null)" = "$(CURDIR)" || rm -f $(READY))
$(READY): pyproject.toml $(wildcard $(CONSTRAINTS))
	test -x $(BIN)/python || { $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"biasnb needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=path")' \
		&& $(PYTHON) -m venv $(VENV); }
	$(call install,$(BIN)) --editable '.[dev]' $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	echo "$(CURDIR)" > $(READY)
