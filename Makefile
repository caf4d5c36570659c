# make demo   the main job, with published weights and with a network of its own, in a virtual environment of its own
# make test   tests, ruff and mypy, likewise
# make slow   full grids and benchmarks; minutes as yet
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= equiscreen-demo
# mypy wants the package under its own name; the repository's folder may have any.
TYPES := build/types

.PHONY: demo test lint slow clean

demo: $(VENV)/installed
	$(BIN)/equiscreen demo --out $(DEMO_OUT) --overwrite

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout 7200
	$(BIN)/python tests/benchmarks/runtime_rate.py
	$(BIN)/python tests/benchmarks/featurize_rate.py ../shared/data
	$(BIN)/python tests/benchmarks/read_rate.py ../shared/data
	$(BIN)/python tests/benchmarks/million.py ../shared/data

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p $(TYPES) && ln -sfn ../.. $(TYPES)/equiscreen
	cd $(TYPES) && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p equiscreen.pipeline -p equiscreen.model \
	  -p equiscreen.export -p equiscreen.screening -p equiscreen.cli -p equiscreen.demo -m equiscreen.__main__

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
