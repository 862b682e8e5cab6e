# make run   the eight themes on the embedded sample     make test       the suite on the smoke profile
# make lint  code, notebooks and workflows                make test-all   the long tests as well

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CONSTRAINTS ?= -c constraints.txt
RUN_HOME ?= sample-run
RUN_ARGS ?= --source sample --home $(RUN_HOME)

.PHONY: install run test test-all lint clean

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one (sudo apt-get install python3 python3-venv) and run make again."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "The venv module is missing: run 'sudo apt-get install python3-venv' and make again."; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt $(CONSTRAINTS)
	@$(BIN)/python -m tools.packages  # with a GPU: swaps the ONNX Runtime before notebooks run side by side
	@touch $@

run: $(STAMP)
	$(BIN)/python course.py run $(RUN_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) $(RUN_HOME)
