# Every target works as the first command on a machine with Python >= 3.11 (with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: setup browser latex demo app test test-rest test-all test-slow wheel check format profile-h200 benchmarks clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## record the bundled corpus with the bundled model and write a report
	$(BIN)/workbench demo

app: setup  ## open the app on http://localhost:8501
	$(BIN)/workbench app

# A test is of one thread; tests are dealt to as many processes as there are cores, four at most, and one that has
# nothing left takes half of another's: files stay together, and the longest is not waited for at the end.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test: setup browser latex  ## units, contracts, each family once, one journey in the browser: before every commit
	$(PYTEST) -m 'not slow and not rest'

test-rest: setup browser latex  ## the remainder: every combination, simulations, kills, the app page by page
	$(PYTEST) -m 'rest and not slow'

test-all: setup browser latex  ## both
	$(PYTEST)

test-slow: setup  ## what counts over thousands of data sets; minutes
	$(BIN)/python -m pytest -m slow

wheel: setup  ## installs the wheel into empty environments and runs it there; minutes
	tests/wheel/run.sh $(BIN)/python

# The pages' tests drive Debian's chromium. Without it they are left out, and CI=1 makes that a failure.
browser:
	@command -v chromium chromium-browser >/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-liberation; } \
	    || echo "The tests of the app in a browser need chromium (apt-get install chromium); without it they are left out."; }

# The LaTeX of a bundle is compiled in the tests; as for chromium.
latex:
	@command -v pdflatex >/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && { apt-get update -qq && apt-get install -y -qq --no-install-recommends texlive-latex-recommended; } \
	    || echo "Tests that compile LaTeX need pdflatex (apt-get install texlive-latex-recommended); without it they are left out."; }

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One H200, the reference pair at full size: in pieces of at most 8 minutes; the same command again goes on where it
# stopped. PROGRAMME=tiny OUT=DIR rehearses it on any machine.
PROGRAMME ?= h200
OUT ?= data/reference/$(PROGRAMME)
profile-h200: setup
	$(BIN)/workbench programme $(PROGRAMME) --out $(OUT)

benchmarks: setup
	$(BIN)/python -m tests.benchmarks.recording
	$(BIN)/python -m tests.benchmarks.proof
	$(BIN)/python -m tests.benchmarks.attention
	$(BIN)/python -m tests.benchmarks.analyses
	$(BIN)/python -m tests.benchmarks.coactivation
	$(BIN)/python -m tests.benchmarks.suite
	$(BIN)/python -m tests.benchmarks.pages

clean:
	rm -rf $(VENV) report
