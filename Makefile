# make run   the eight themes on the embedded sample     make test       unit, course, bonus and scale tests
# make lint  code, notebooks and workflows                make test-unit  the fast ones: under three minutes
# make demo  the model in a web page (runs the course     make test-all   the long ones as well
#            first where it has not run yet)              make site       the executed notebooks as web pages
# make bonus installs what demo and site need, make scale what `course.py compact` and `check --jobs` need; run, lint,
# test-unit and test-course do without

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CONSTRAINTS ?= -c constraints.txt
RUN_HOME ?= sample-run
RUN_ARGS ?= --source sample --home $(RUN_HOME)
BONUS := .venv-bonus
BONUS_STAMP := $(BONUS)/installed
BONUS_CONSTRAINTS := $(if $(CONSTRAINTS),-c constraints-bonus.txt)
SCALE := .venv-scale
SCALE_STAMP := $(SCALE)/installed
SCALE_CONSTRAINTS := $(if $(CONSTRAINTS),-c constraints-scale.txt)
DEMO_ARGS ?=
PYTEST := -m pytest -n 2

.PHONY: install bonus scale run demo site lint \
	test test-all test-unit test-course test-bonus test-scale test-slow clean

install: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one (sudo apt-get install python3 python3-venv) and run make again."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "The venv module is missing: run 'sudo apt-get install python3-venv' and make again."; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt $(CONSTRAINTS)
	@$(BIN)/python -m tools.colab.packages  # with a GPU: swaps the ONNX Runtime before notebooks run side by side
	@touch $@

bonus: $(BONUS_STAMP)

# An overlay: its own packages first, then those of .venv, by the path in core.pth; without a pip or setuptools of its
# own it uses those of .venv too. That of the bonus has pillow 12, as gradio wants pillow < 13; .venv keeps its 13.
define overlay
@$(BIN)/python -m venv --clear --without-pip $(1)
@$(BIN)/python -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$$($(1)/bin/python -c 'import site; print(site.getsitepackages()[0])')/core.pth"
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2) $(3)
@touch $@
endef

$(BONUS_STAMP): $(STAMP) requirements-bonus.txt constraints-bonus.txt
	$(call overlay,$(BONUS),requirements-bonus.txt,$(BONUS_CONSTRAINTS))

scale: $(SCALE_STAMP)

$(SCALE_STAMP): $(STAMP) requirements-scale.txt constraints-scale.txt
	$(call overlay,$(SCALE),requirements-scale.txt,$(SCALE_CONSTRAINTS))

run: $(STAMP)
	$(BIN)/python course.py run $(RUN_ARGS)

demo: $(BONUS_STAMP)
	@test -f $(RUN_HOME)/exports/model.onnx || $(MAKE) run
	$(BONUS)/bin/python course.py demo --home $(RUN_HOME) $(DEMO_ARGS)

site: $(BONUS_STAMP)  # a notebook that fails is shown in the site, and fails the target at its end
	@failed=0; \
	test -d $(RUN_HOME)/exports/notebooks || $(MAKE) run || failed=1; \
	$(BONUS)/bin/python course.py site --home $(RUN_HOME) || failed=1; \
	exit $$failed

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

test: lint
	$(MAKE) test-unit test-course test-bonus test-scale

test-all: test
	$(MAKE) test-slow

# The core is tested where nothing else is installed.
test-unit test-course: test-%: $(STAMP)
	$(BIN)/python $(PYTEST) --dist loadgroup -m "$* and not (slow or bonus or scale)"

test-bonus: $(BONUS_STAMP)
	$(BONUS)/bin/python $(PYTEST) --dist loadfile -m "bonus and not slow"

test-scale: $(SCALE_STAMP)
	$(SCALE)/bin/python $(PYTEST) --dist loadfile -m "scale and not slow"

test-slow: $(SCALE_STAMP)
	$(BIN)/python $(PYTEST) --dist loadgroup -m "slow and not (bonus or scale)"
	$(SCALE)/bin/python $(PYTEST) --dist loadfile -m "slow and scale"

clean:
	rm -rf $(VENV) $(BONUS) $(SCALE) $(RUN_HOME) sample-run-solar site
