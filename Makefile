# Two commands on a fresh machine with Python 3.11 or newer, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A CPU-only torch is far smaller:  make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# Says so where a folder beside a script hides one of the packages; in this environment only, a wheel does not have it.
HIDDEN := packaging/hidden_packages.py packaging/hidden_packages.pth

.PHONY: demo test quick lint nightly wheelhouse clean

$(READY): pyproject.toml setup.py $(HIDDEN)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=python3.12, for example")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable '.[cpu,train,serve,dev]'
	cp $(HIDDEN) "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $(READY)

demo: $(READY)
	rm -rf demo
	$(BIN)/reid demo --output demo

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 -m 'not nightly'

quick: $(READY) lint
	$(BIN)/python -m pytest -n auto -m 'not slow and not nightly'

nightly: $(READY)
	$(BIN)/python -m pytest -m nightly --timeout=7200

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An offline install for the edge: make wheelhouse PLATFORM=aarch64 TARGET_PYTHON=3.12 EXTRA=cpu,serve (docs/edge.md)
wheelhouse:
	PYTHON="$(PYTHON)" PLATFORM="$(PLATFORM)" TARGET_PYTHON="$(TARGET_PYTHON)" EXTRA="$(EXTRA)" WITH="$(WITH)" GLIBC="$(GLIBC)" OUT="$(OUT)" \
	packaging/wheelhouse.sh

clean:
	rm -rf $(VENV) demo build dist wheelhouse *.egg-info
