# Everything runs in .venv, which the first command creates; the extension is rebuilt whenever its source has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHARON ?= recorded
SANITIZERS := address,undefined
PORTABLE ?=
ASAN := $(VENV)-asan
FUZZ := $(VENV)-fuzz

.PHONY: help demo test test-faults soak test-versions test-daemons test-asan fuzz lint build quick dist docs bench bench-instructions clean tools

help:
	@echo "Try it"
	@echo "  make demo [CHARON=real]     run the bridge on recorded traffic, or on two real charons (root)"
	@echo "Inner loop"
	@echo "  make build                  set up .venv and build the extension in place"
	@echo "  make quick [TESTS=...]      build without optimization and test, by default test_wire.py"
	@echo "  make lint                   ruff, cython-lint, mypy, stubtest, plain English"
	@echo "Tests"
	@echo "  make test                   run the suite; real-daemon tests need strongSwan and root"
	@echo "  make test-faults            break NATS, charon and the bridge under traffic, and account for every event"
	@echo "  make soak [SECONDS=3600]    cause random faults under mixed traffic; writes a table and soak.svg"
	@echo "  make test-daemons           run the real-daemon tests on Debian 12, 13 and sid, or SUITES=... (root, debootstrap)"
	@echo "  make test-versions          build and test the sdist on each CPython found, or PYTHONS=..."
	@echo "  make test-asan              test the codec under the address and undefined-behaviour sanitizers"
	@echo "  make fuzz [SECONDS=60]      fuzz the codec under the same sanitizers (clang)"
	@echo "Figures"
	@echo "  make bench [ARGS=...]       measure against peers in one run; ARGS=--help lists the options"
	@echo "  make bench-instructions     compare the codec's instruction counts with the baseline (valgrind); ARGS=--update"
	@echo "Release"
	@echo "  make docs                   build the documentation into docs/_build; a warning is an error"
	@echo "  make dist                   build sdist and wheel"
	@echo "  make clean                  remove everything built"

# Packages missing in a minimal Debian; elsewhere the error names the missing ones.
tools:
	@$(PYTHON) -c 'import ensurepip, venv, sysconfig, os, shutil, sys; \
	    sys.exit(not (os.path.exists(sysconfig.get_path("include") + "/Python.h") and shutil.which("cc")))' \
	    2>/dev/null || $(MAKE) --no-print-directory tools-debian

.PHONY: tools-debian
tools-debian:
	@[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { \
	    echo "needed: a C compiler, and for $(PYTHON) venv and the headers" \
	         "(Debian: apt-get install gcc libc6-dev python3-dev python3-venv)" >&2; exit 1; }
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends gcc libc6-dev python3-dev python3-venv

$(VENV)/made: pyproject.toml setup.py
	@$(MAKE) --no-print-directory tools
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=80" "Cython>=3.3.1,<4"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[demo]" --group dev
	@if [ -d .git ] && ! git config --get core.hooksPath >/dev/null; then $(BIN)/pre-commit install >/dev/null; fi
	@touch $@

build: $(VENV)/made
	@$(BIN)/python setup.py --quiet build_ext --inplace

# The compiler takes most of the time; without optimization the loop from an edit to the codec's tests is half as long.
quick: TESTS ?= tests/test_wire.py
quick: $(VENV)/made
	@VICIFAST_OPTIMIZE=0 $(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python -m pytest -q $(TESTS)

demo: build
ifeq ($(CHARON),real)
	@$(BIN)/python -m tests.lab.demo
else
	@$(BIN)/vicibridge demo --recordings tests/data
endif

test: build
	$(BIN)/python -m pytest

test-faults: build
	$(BIN)/python -m pytest -m faults

lint: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src  # it calls pycodestyle
	$(BIN)/mypy
	@$(MAKE) --no-print-directory stubtest
	$(BIN)/python -m tests.plain_english

# MYPYPATH, because an editable installation is invisible to mypy.
.PHONY: stubtest
stubtest:
	MYPYPATH=src $(BIN)/python -m mypy.stubtest --allowlist tests/stubtest.txt --ignore-unused-allowlist vicifast._wire

$(VENV)/docs: $(VENV)/made
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

docs: build $(VENV)/docs
	$(BIN)/sphinx-build -q -E -W --keep-going -b dirhtml docs docs/_build

$(VENV)/dist: $(VENV)/made
	$(BIN)/python -m pip install --quiet --group dist
	@touch $@

dist: build $(VENV)/dist
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

test-versions: dist
	$(BIN)/python -m tests.versions $(PYTHONS) $(if $(ARGS),-- $(ARGS))

test-daemons: dist
	$(BIN)/python -m tests.daemons $(SUITES) $(if $(ARGS),-- $(ARGS))

# PYTHONMALLOC=malloc gives the sanitizer every object; CPython itself never frees all that it allocates.
test-asan: tools
	$(PYTHON) -m venv $(ASAN)
	$(ASAN)/bin/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=80" "Cython>=3.3.1,<4"
	VICIFAST_SANITIZE=$(SANITIZERS) $(ASAN)/bin/python -m pip install --quiet --no-build-isolation --force-reinstall ".[bridge]" --group test
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	    PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    $(ASAN)/bin/python -m pytest -s -q -p no:cacheprovider @tests/codec.txt

# atheris includes the runtime of clang's sanitizers, so only clang itself is required.
fuzz: SECONDS ?= 60
fuzz: tools
	@command -v clang >/dev/null || { echo "needed: clang (Debian: apt-get install clang)" >&2; exit 1; }
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=80" "Cython>=3.3.1,<4"
	$(FUZZ)/bin/python -m pip install --quiet --group fuzz
	CC=clang VICIFAST_PORTABLE=$(PORTABLE) VICIFAST_SANITIZE=fuzzer-no-link,$(SANITIZERS) \
	    $(FUZZ)/bin/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	$(FUZZ)/bin/python tests/fuzz --seconds $(SECONDS)

$(VENV)/bench: $(VENV)/made
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

soak: SECONDS ?= 3600
soak: build $(VENV)/bench
	@$(BIN)/python -m tests.soak --seconds $(SECONDS)

bench: build $(VENV)/bench
	@$(BIN)/python -m benchmarks $(ARGS)

bench-instructions: build $(VENV)/bench
	@$(BIN)/python -m benchmarks.instructions $(ARGS)

clean:
	rm -rf build dist docs/_build $(VENV) $(ASAN) $(FUZZ) *.egg-info src/vicifast/*.so
