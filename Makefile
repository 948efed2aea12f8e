# make demo, make test: both set up .venv when it is not there, and are quick when it is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) PYTHONWARNINGS=ignore $(BIN)/python -m
DEMO ?= checkpoints

.PHONY: demo test test-all test-slurm lint types bench setup clean help
help:
	@echo "make demo      train 2 x 5 folds on embedded digits, explain, evaluate, print the tables"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  also the slow and GPU tests"
	@echo "make test-slurm  jobs and requeue on a SLURM that is started for them (Debian and Ubuntu; installs it if need be)"
	@echo "make bench     speed and memory against the bare model calls and the peers"

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers,dashboards]'
	touch $@

# two chains side by side, one thread each: on small networks that is faster than two threads for one
demo: setup
	@$(MAKE) --no-print-directory -j2 demo-resnet18 demo-lipschitz
	@for model in resnet18 lipschitz; do \
	  $(RUN) lit_xai.evaluate experiment=quick model=$$model root=$(DEMO) progress=false || exit 1; \
	done
	@echo "results: $(DEMO)/digits-resnet18/report.html  $(DEMO)/digits-lipschitz/report.html"
demo-%:
	@$(RUN) lit_xai.train -m experiment=quick model=$* 'fold=range(5)' root=$(DEMO) progress=false
	@$(RUN) lit_xai.explain -m experiment=quick model=$* 'fold=range(5)' probes=disagreements root=$(DEMO) progress=false

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: setup
	$(BIN)/mypy
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
test-all: lint types
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m 'not slurm'
$(VENV)/.slurm: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm]'
	touch $@
test-slurm: $(VENV)/.slurm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -n 2 --dist worksteal tests/slurm
bench: setup
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks
clean:
	rm -rf .venv checkpoints/*/ .mypy_cache .ruff_cache .pytest_cache
