# `make e2e` and `make test` need only Python 3.11+ and make; each sets up .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: e2e test lint format bench clean

e2e: $(STAMP)
	$(BIN)/e2e-run examples/

test: $(STAMP)
	PYTHONDEVMODE=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/kit.py
	$(BIN)/python benchmarks/postgres.py
	$(BIN)/python benchmarks/parallel.py

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,examples]'
	touch $(STAMP)

clean:
	rm -rf .venv .e2e-run build dist
