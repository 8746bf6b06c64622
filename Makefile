# `make demo` and `make test` set up all they need: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the demo needs, what the tests and checks need, and what the slow tests need besides.
LAB := $(VENV)/.lab
DEV := $(VENV)/.dev
FUZZ := $(VENV)/.fuzz

VERSION := src/optim4rl/__init__.py
NATIVE := $(wildcard src/optim4rl/cpp/*.h src/optim4rl/*/kernels/*.cc src/optim4rl/*/kernels/*.h)

.PHONY: demo test test-slow test-install test-pages faults bench lint audit docs readability clean

demo: $(LAB)
	$(BIN)/optim4rl ablate plans/optim4rl.md --out runs/demo --scale quick
	@echo
	@echo "Open runs/demo/report.html in a browser."

# A file's tests in one process, so that what its fixtures compile is compiled once.
test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(FUZZ)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# What is published: built and installed, with a C++ compiler and without.
test-install: $(DEV)
	$(BIN)/python -m pytest -m slow tests/packaging

# What README and pages say, run as printed; the notebook; pages in Chromium.
test-pages: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests/test_docs.py tests/test_pages.py \
	  tests/pages/test_in_browser.py tests/examples/test_notebook.py

# Kills, damages, starves, fuzzes and soaks, and counts; two hours on two cores, and root for the disks.
FAULTS := tests/faults tests/plans/test_plan_fuzz.py tests/jobs/test_ray_pool.py
faults: $(FUZZ)
	$(BIN)/python -m pytest -m slow $(FAULTS) --faults-table docs/results/faults.md
	$(BIN)/python -m tests.soak --minutes 60 --results docs/results

# Twenty minutes on two cores, which should have nothing else to do.
bench: $(DEV)
	$(BIN)/python -m bench

lint: $(DEV)
	$(BIN)/ruff check src tests bench docs examples hatch_build.py
	$(BIN)/ruff format --check src tests bench docs examples hatch_build.py
	$(BIN)/mypy
	$(BIN)/mypy tests/faults/conftest.py
	$(BIN)/mypy tests/optimizers/conftest.py

# Packages that agree with each other, and no known vulnerability in a pinned one. The audit trusts
# the certificates that pip was told to trust.
PIP_CERTIFICATES = $${PIP_CERT:-$$($(BIN)/python -m pip config list | sed -n "s/^global.cert='\(.*\)'/\1/p")}
audit: $(DEV)
	$(BIN)/python -m pip check
	REQUESTS_CA_BUNDLE="$${REQUESTS_CA_BUNDLE:-$(PIP_CERTIFICATES)}" \
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

# The site, in build/site.
docs: $(DEV)
	$(BIN)/python -m mkdocs build --strict

# How easily README, docs, help and docstrings read.
readability: $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check textstat==0.7.4 'setuptools<81'
	$(BIN)/python docs/readability.py

$(LAB): EXTRAS := lab
$(DEV): EXTRAS := lab,dev,docs,trackers
$(FUZZ): EXTRAS := lab,dev,docs,trackers,fuzz
$(LAB) $(DEV) $(FUZZ): pyproject.toml constraints.txt hatch_build.py $(VERSION) $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optim4rl needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) .cache runs
