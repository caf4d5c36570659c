# make demo       rank crystals with published weights, then train a network; in a virtual environment of its own
# make test       lint, then the tests, on all cores
# make lint       ruff, mypy and the import contracts (import-linter)
# make docs-test  build the documentation, and run the examples in README, docs and docstrings, and the notebooks
# make docs       build the documentation as a site in build/site; a broken link or a misspelt word is an error
# make slow       run the tests marked slow, then the benchmarks that need only DATA; this takes a while
# make bench      compare the speed with other packages' (hours; BENCH=--quick tries it), and print one table
# make oracles    compute anew what the codes of published weights predict, for the tests of imported networks
# make dist       build the wheel and the source distribution in dist
# make release-check  say what still keeps this version from being released
# make models-wheel  build the wheel equiscreen-models in dist: 7net-0 as an ONNX file, for use without PyTorch
# make clean      remove the virtual environments and all caches
#
# PYTHON chooses the interpreter, by name or by path; versions other than 3.11 get an environment of their own:
# `make test PYTHON=python3.12` uses .venv-3.12. DATA is the folder of the data sets.
PYTHON ?= python3.11
# An interpreter that only pyenv knows is not on PATH, or its shim there fails unless that version is the active one.
interpreter = $(shell for python in "$(1)" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin/"$(notdir $(1))"; do \
  "$$python" -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
INTERPRETER := $(call interpreter,$(PYTHON))
VERSION := $(if $(INTERPRETER),$(shell "$(INTERPRETER)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
VENV := $(if $(filter 3.11,$(VERSION)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
# One more than there are cores: many tests wait for processes that they start. With several threads each, the processes
# would spin while they wait for one another.
WORKERS ?= $(shell expr $$(nproc) + 1)
DATA ?= ../shared/data
SITE ?= build/site
DEMO_OUT ?= equiscreen-demo
# mypy, import-linter and doctest need the package under its own name; the folder of the repository may have any name.
PACKAGE := build/types/equiscreen
PARTS := pipeline model export screening publishing campaigns conformance demo cli

# Codes whose results tests/oracles holds, each in an environment of its own: they pin e3nn against each other.
ORACLES := sevennet nequip allegro mace nequip_deploy nequip_old
PEER_sevennet := sevenn==0.13.0
PEER_nequip := nequip==0.19.1
PEER_allegro := nequip==0.19.1 nequip-allegro==0.8.3
PEER_mace := mace-torch==0.3.16
PEER_nequip_deploy := nequip==0.6.2
PEER_nequip_old := nequip==0.7.1
# Programs that read what equiscreen publishes, for the tests marked slow. optimade-maker needs Python < 3.13, and
# roc-validator an older rich. rocrate holds the JSON-LD context that roc-validator would download.
READERS := $(if $(filter 3.11 3.12,$(VERSION)),optimade) crate
PEER_optimade := optimade-maker==1.0.0 optimade[http-client]==1.5.0
PEER_crate := roc-validator==0.13.0 rocrate==0.13.0
# Further packages that `make bench` measures. TorchSim needs Python 3.12; it also runs our files.
BENCH_PEERS := sevennet nequip mace matcalc torchsim
PEER_matcalc := sevenn==0.13.0 matcalc==0.7.0
PYTHON_torchsim := python3.12
PEER_torchsim := torch-sim-atomistic==0.6.2 sevenn==0.13.0 --editable '.[cpu]'

.PHONY: demo test lint docs-test docs slow bench oracles dist release-check models-wheel clean

demo: $(VENV)/installed
	$(BIN)/equiscreen demo --out $(DEMO_OUT) --overwrite

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10

lint: $(VENV)/installed | $(PACKAGE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $(dir $(PACKAGE)) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-version $(VERSION) \
	  $(addprefix -p equiscreen.,$(PARTS)) -m equiscreen.__main__
	cd $(dir $(PACKAGE)) && PYTHONPATH=. ../../$(BIN)/lint-imports ../../pyproject.toml

docs-test: docs | $(PACKAGE)
	cd $(dir $(PACKAGE)) && PYTHONPATH=. ../../$(BIN)/python -m pytest --doctest-modules \
	  -p equiscreen.tests.docstring_examples equiscreen/__init__.py $(addprefix equiscreen/,$(filter-out conformance,$(PARTS)))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' --timeout 1800 --numprocesses $(WORKERS) \
	  tests/test_readme.py tests/test_notebooks.py tests/test_docs_blocks.py

# mkdocs would search the whole checkout, with its virtual environments, so it gets a folder of the packages alone.
docs: $(VENV)/installed
	mkdir -p build/documented/equiscreen
	ln -sf $(addprefix ../../../,__init__.py $(PARTS)) build/documented/equiscreen
	$(BIN)/codespell README.md CHANGELOG.md mkdocs.yml docs
	PYTHONPATH=build/documented NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)

slow: $(VENV)/installed $(READERS:%=build/peers/%/installed)
	$(BIN)/python -m pytest -m slow --timeout 7200
	$(BIN)/python tests/benchmarks/runtime_rate.py
	$(BIN)/python tests/benchmarks/presets.py $(DATA)
	$(BIN)/python tests/benchmarks/featurize_rate.py $(DATA)
	$(BIN)/python tests/benchmarks/read_rate.py $(DATA)
	$(BIN)/python tests/benchmarks/million.py $(DATA)
	$(BIN)/python tests/benchmarks/screen_rate.py $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/hull_rate.py --data $(DATA)
	$(BIN)/python tests/benchmarks/select_rate.py
	$(BIN)/python tests/benchmarks/serve_rate.py
	$(BIN)/python tests/benchmarks/pretrained_size.py --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/dispersion.py --data $(DATA)
	$(BIN)/python tests/benchmarks/rank.py $(DATA)
	$(BIN)/python tests/benchmarks/screening_skill.py $(DATA)

bench: $(VENV)/installed $(BENCH_PEERS:%=build/peers/%/installed)
	$(BIN)/python tests/benchmarks/bench.py --data $(DATA) --peers build/peers --out build/bench $(BENCH)

oracles: $(addprefix oracle-,$(ORACLES))

# mace-torch pins an e3nn whose constants PyTorch only loads with this variable.
oracle-%: build/peers/%/installed
	TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 build/peers/$*/bin/python -m tests.oracles.$*

PEER_PYTHON = $(call interpreter,$(or $(PYTHON_$*),$(PYTHON)))
build/peers/%/installed:
	@test -n "$(PEER_PYTHON)" || { echo "no interpreter $(or $(PYTHON_$*),$(PYTHON)) for $(@D)" >&2; exit 1; }
	"$(PEER_PYTHON)" -m venv --upgrade-deps $(@D)
	$(@D)/bin/python -m pip install --quiet $(if $(filter $*,$(ORACLES) $(BENCH_PEERS)),torch==2.13.0) $(PEER_$*)
	touch $@

dist: $(VENV)/installed
	$(BIN)/python -m build --outdir dist .

release-check: dist
	$(BIN)/python tools/release/check.py dist

models-wheel: $(VENV)/installed
	$(BIN)/python tools/models_wheel/build.py --out dist

# A newer pip than Python 3.11 brings finds the versions of all packages in a quarter of the time.
$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(INTERPRETER)" || { echo "no interpreter $(PYTHON): install it, or name another with PYTHON=" >&2; exit 1; }
	"$(INTERPRETER)" -m venv --upgrade-deps $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(PACKAGE):
	mkdir -p $(dir $@) && ln -sfn ../.. $@

clean:
	rm -rf .venv .venv-* build *.egg-info .mypy_cache .pytest_cache .ruff_cache
