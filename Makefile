# Everything runs in .venv, which the first command makes; the extension is rebuilt whenever its source changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHARON ?= recorded
SANITIZERS := address,undefined
PORTABLE ?=
ASAN := $(VENV)-asan
FUZZ := $(VENV)-fuzz

.PHONY: help demo test test-faults soak test-versions test-daemons test-asan fuzz lint build dist docs bench bench-instructions clean tools

help:
	@echo "make demo [CHARON=real]  the bridge at work, on recorded traffic or on two real charons (root)"
	@echo "make test                the test-suite; real-daemon tests where charon is installed and we are root"
	@echo "make test-faults         NATS and the bridge broken in many ways under traffic; what arrived is held against it"
	@echo "make soak [SECONDS=3600] mixed traffic while all around the bridge breaks at random; a table and soak.svg"
	@echo "make test-versions       the sdist built, repaired, installed and tested on each CPython at hand, or on PYTHONS=..."
	@echo "make test-daemons        the tests that need charon, on the strongSwan of Debian 12, 13 and sid, or of SUITES=... (root)"
	@echo "make test-asan           the codec's tests under the address and undefined-behaviour sanitizers"
	@echo "make fuzz [SECONDS=60]   bytes that look for what the codec gets wrong, under the same sanitizers (clang)"
	@echo "make lint                ruff, cython-lint, mypy, stubtest"
	@echo "make build               the extension, in place"
	@echo "make docs                the documentation, into docs/_build; a warning is an error"
	@echo "make dist                sdist and wheel"
	@echo "make bench [ARGS=...]    us and our peers, measured in one run; ARGS=--help shows the options"
	@echo "make bench-instructions  instructions of the codec, compared with the baseline (valgrind); ARGS=--update"

# What a bare Debian lacks; elsewhere the error says what is missing.
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
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[demo]" --group test
	@touch $@

build: $(VENV)/made
	@$(BIN)/python setup.py --quiet build_ext --inplace

demo: build
ifeq ($(CHARON),real)
	@$(BIN)/python -m tests.lab.demo
else
	@$(BIN)/vicibridge demo --recordings tests/data
endif

test: build
	$(BIN)/python -m pytest

test-faults: build
	$(BIN)/python -m pytest -m faults tests/bridge/faults

$(VENV)/lint: $(VENV)/made
	$(BIN)/python -m pip install --quiet --group lint
	@touch $@

lint: build $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src  # it calls pycodestyle
	$(BIN)/mypy
	@$(MAKE) --no-print-directory stubtest

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

# atheris brings the runtime of clang's sanitizers, so that clang itself is all that is needed here.
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
