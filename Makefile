# make demo, make test: both set up .venv when it is not there, and are quick when it is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) PYTHONWARNINGS=ignore $(BIN)/python -m
DEMO ?= checkpoints

.PHONY: demo demo-full fast test test-all test-slurm lint types bench docs setup clean help
help:
	@echo "make demo      audit two networks on drawn shapes with a planted shortcut, in minutes"
	@echo "make demo-full  the same on embedded digits, by every method"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  also the slow and GPU tests"
	@echo "make test-slurm  jobs and requeue on a SLURM that is started for them (Debian and Ubuntu; installs it if need be)"
	@echo "make docs      the pages of docs/ as a site, with the reference: docs/_build/index.html"
	@echo "make bench     speed and memory against the bare model calls and the peers"

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,dashboards,timm,hf,labels]'
	touch $@

# the answer can be seen to be right: a tag gives the class away, and the networks learn it in the place of the shapes
demo: setup
	@$(RUN) lit_xai.audit experiment=demo 'models=[resnet18,lipschitz]' root=$(DEMO)
# every method that has a yaml, on handwritten digits
demo-full: setup
	@$(RUN) lit_xai.audit experiment=digits 'models=[resnet18,lipschitz]' root=$(DEMO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: setup
	$(BIN)/mypy
# types and tests side by side: a core would idle
test: lint
	@$(MAKE) --no-print-directory -j2 types fast
fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test-all: lint types $(VENV)/.docs
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m 'not slurm'
$(VENV)/.slurm: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm]'
	touch $@
test-slurm: $(VENV)/.slurm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -n 2 --dist worksteal tests/slurm
$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
docs: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going docs docs/_build
bench: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks
clean:
	rm -rf .venv checkpoints/*/ docs/_build docs/_reference .mypy_cache .ruff_cache .pytest_cache
