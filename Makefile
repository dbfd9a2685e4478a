# make demo   train on real images next to AdamW, with live curves
# make test   lint, types, and every test, against the built wheel
# make bench  microbenchmarks of the kernels; it installs lnb-bench too, which trains and compares models
# make bench-compare BASE=a.json NEW=b.json
#             fails where a benchmark got slower beyond its noise
# make fuzz N=20000
#             random calls of every op and random models, judged in float64
# make reliability
#             kills, interrupts, full disks, damaged checkpoints and a soak, in full: about half an hour
# make sanitize
#             the CPU module's tests under the address, undefined-behaviour and thread sanitizers, and with poisoned memory
# make trainers
#             LNB in accelerate, Lightning, Transformers, timm, torchtitan and peft, which it installs into .venv
# make peers
#             optimizer tests of PyTorch, accelerate and Lightning with LNB; what ran goes to docs/peers.md
# make docs   the documentation site, into build/site: open build/site/index.html
# make docs-test
#             links, offline use, search and looks of the site, in headless Chromium where there is one
# make wheels CUDA_HOMES="/usr/local/cuda-12.4 /usr/local/cuda-13.0"
#             a wheel with the kernels of each toolkit, into wheels/, and what each needs; no GPU is used
# make gpu    on a machine with a GPU, offline: build, tests on hardware, times
# Each makes its environment in .venv first, and again when requirements or sources change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2
N ?= 20000

SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard README.md) \
  $(shell find csrc lnb_kernels python -type f -not -name '*.so' -not -name '_build_info.json' -not -path '*__pycache__*' -not -path '*.egg-info*')
NATIVE_SOURCES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# The source folder must not shadow the installed wheel, and threads must not fight over the cores.
RUN := PYTHONPATH= OMP_NUM_THREADS=1

# A wheel without the native module is good enough for the demo, but not for the tests.
test pytest fuzz bench reliability sanitize trainers peers: export LNB_NATIVE := required

.PHONY: demo test lint types pytest fuzz bench bench-compare reliability sanitize trainers peers docs docs-test wheels gpu clean

demo: $(VENV)/.run $(VENV)/.wheel
	$(BIN)/lnb demo

# clang-tidy and mypy take longest before the tests, and use one core each.
test:
	$(MAKE) -j $(JOBS) lint types
	$(MAKE) pytest

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/cmake -S . -B build/tidy -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DLNB_CUDA=off \
	  -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" > /dev/null
	printf '%s\n' $(wildcard csrc/cpu/*.cpp) | xargs -P $(JOBS) -n 1 $(BIN)/clang-tidy -p build/tidy --quiet

types: $(VENV)/.test
	$(BIN)/mypy

pytest: $(VENV)/.test $(VENV)/.bench
	$(RUN) LNB_TEST_INSTALLED=1 $(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

# From tests/, so that Python finds the harness there, and the package where it is installed.
fuzz: $(VENV)/.test $(VENV)/.wheel
	cd tests && $(RUN) $(CURDIR)/$(BIN)/python -m fuzz --calls $(N) $(ARGS)

bench: $(VENV)/.test $(VENV)/.bench
	PYTHONPATH= $(BIN)/pytest bench/micro --benchmark-only $(ARGS)

# Fails where NEW is slower than BASE beyond noise; both are files of `make bench ARGS=--benchmark-json=FILE`.
bench-compare:
	$(PYTHON) bench/compare.py $(BASE) $(NEW) $(ARGS)

reliability: $(VENV)/.test $(VENV)/.bench
	$(RUN) $(BIN)/python tests/reliability/kills.py --kills 200
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/interrupts.py
	$(RUN) $(BIN)/python tests/reliability/full_disk.py --trials 40
	$(RUN) $(BIN)/python tests/reliability/damaged_checkpoints.py --count 1000
	$(RUN) $(BIN)/python tests/reliability/soak.py --steps 100000 --calls 100000

sanitize: $(VENV)/.test $(VENV)/.wheel
	$(BIN)/python tests/reliability/sanitize.py $(ARGS)

trainers: $(VENV)/.test $(VENV)/.wheel
	$(PIP) install --quiet -r requirements/trainers.txt
	$(RUN) LNB_TEST_INSTALLED=1 $(BIN)/pytest tests/integrations tests/docs/test_code_blocks.py $(ARGS)

peers: $(VENV)/.test $(VENV)/.wheel
	$(PIP) install --quiet -r requirements/trainers.txt
	$(RUN) LNB_TEST_INSTALLED=1 LNB_PEERS_TABLE=docs/peers.md $(BIN)/pytest tests/peers $(ARGS)

# Reads the sources without importing them: neither torch nor a compiler is needed. With --quiet, a warning would not fail it.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-test: docs
	LNB_SITE=build/site $(BIN)/pytest --confcutdir tests/docs/site tests/docs/site $(ARGS)

# One toolkit's wheel runs with drivers of its major release and later ones. They differ in nothing else, so each has a folder
# of its own: wheels/cu124, wheels/cu130.
CUDA_HOMES ?= $(or $(CUDA_HOME),/usr/local/cuda)
wheels: $(VENV)/.run
	rm -rf wheels
	set -e; for home in $(CUDA_HOMES); do \
	  version=$$($$home/bin/nvcc --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\),.*/\1\2/p'); \
	  CUDA_HOME=$$home LNB_NATIVE=required LNB_CUDA=on LNB_WERROR=1 PATH=$(CURDIR)/$(BIN):$$PATH \
	    $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir wheels/cu$$version .; \
	done
	$(BIN)/python tests/packaging/cuda_wheel.py wheels/*/*.whl

# No environment of its own: it must work offline, with the torch and triton that the machine has.
gpu:
	$(PYTHON) bench/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist wheels *.egg-info bench/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find lnb_kernels -name '*.so' -delete -o -name '_build_info.json' -delete

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt requirements/build.txt | $(VENV)/bin/python
	$(PIP) install --quiet -r requirements/build.txt -r requirements/run.txt
	touch $@

$(VENV)/.test: requirements/test.txt requirements/bench.txt $(VENV)/.run
	$(PIP) install --quiet -r requirements/test.txt
	touch $@

$(VENV)/.docs: requirements/docs.txt | $(VENV)/bin/python
	$(PIP) install --quiet -r requirements/docs.txt
	touch $@

# build/ is removed because setuptools would pack what an earlier build left there.
$(VENV)/.wheel: $(SOURCES) $(VENV)/.run
	rm -rf build dist
	LNB_WERROR=1 $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(PIP) install --quiet --no-deps --force-reinstall dist/*.whl
	touch $@

# The benchmark harness is in no wheel; it is installed in place, over the installed wheel of the library.
$(VENV)/.bench: bench/pyproject.toml $(VENV)/.test $(VENV)/.wheel
	$(PIP) install --quiet --no-deps --no-build-isolation --editable ./bench
	touch $@
