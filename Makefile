# Everything is installed into .venv; `make quickstart` and `make test` need only make and Python >= 3.11 with venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-fast check format constraints dist docs bench

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ript-ray needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' || (echo 'this Python has no venv module; install it with: apt-get install python3-venv'; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,aws,dev,docs]'
	touch $@

quickstart: install
	$(BIN)/python -m experiments.quickstart

test: check
	@# Both halves run even if the first fails; either fails the target.
	@# Three workers on two cores, for tests with processes and signals wait half of their time.
	$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m 'not alone and not slow'; first=$$?; \
	$(BIN)/pytest -q -m 'alone and not slow' && exit $$first

test-fast: install
	$(BIN)/pytest -q -n 2 --dist loadfile -m 'not ray and not sim and not cli and not slow'

check: install
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Five minutes, on a machine that does nothing else. With AUTHORS=PATH, a checkout of QueST's code is raced as well.
bench: install
	$(BIN)/python -m experiments.benchmarks.races --output docs/measurements.md $(if $(AUTHORS),--authors $(AUTHORS))

format: install
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --fix --quiet .

constraints: # after a package was added to .venv or upgraded there, and `make test` has passed
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --all --exclude-editable --exclude pip \
	  | sed 's/+[^+]*$$//' | LC_ALL=C sort -f; } > constraints.new
	mv constraints.new constraints.txt

dist: install # the same commit gives the same bytes
	$(BIN)/python -m hatchling build

# The site goes to site/; what is missing, undocumented or linked wrongly fails. (With --quiet, nothing would.)
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
