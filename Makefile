# make demo   train three experiments on data/tiny_mm, write a submission and a page that compares them
# make test   lint, types and the whole test suite
# make lint   lint and types only
# make docs   the documentation site in site/
# Each makes .venv and installs what it needs the first time.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KERNELS := $(VENV)/.kernels

.PHONY: demo test lint docs clean

demo: $(STAMP)
	for expid in DIN_MM_none_tiny DIN_tiny DIN_MM_tiny; do \
	    for seed in 1 2 3; do $(BIN)/python run_expid.py --expid $$expid --seed $$seed || exit; done; \
	    $(BIN)/fuxictr-mm diagnose --expid $$expid --quiet || exit; \
	done
	$(BIN)/python prediction.py --expid DIN_MM_tiny
	$(BIN)/fuxictr-mm check-submission submission/DIN_MM_tiny.zip --rows 3000
	$(BIN)/fuxictr-mm report DIN_MM_none_tiny DIN_tiny DIN_MM_tiny

test: lint $(KERNELS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python docs/site_hooks/settings_page.py
	$(BIN)/mkdocs build --strict
	@echo "site/index.html"

# torch first and pinned: left to a dependency, pip may take a build with gigabytes of CUDA.
# tritonclient without what it requires, older versions of others: a test reads its schema alone.
$(STAMP): requirements.txt requirements-scale-cpu.txt setup.py pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(None if (3, 10) <= sys.version_info[:2] <= (3, 13) else f'Python {sys.version.split()[0]}: 3.10 to 3.13 are supported; make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-scale-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tritonclient==2.73.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

$(KERNELS): requirements-kernels.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-kernels.txt
	touch $(KERNELS)

clean:
	rm -rf $(VENV) build dist *.egg-info
