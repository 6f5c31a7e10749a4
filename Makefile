# `make run` and `make test` do all the set-up on a fresh machine: they make .venv, install the pinned versions
# into it once (again when pyproject.toml or constraints.txt change), and go.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
# The pinned versions are for Python 3.11 and 3.12, so these come before whatever `python3` is.
PYTHON ?= $(or $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name)))),python3)
PINNED := pyproject.toml constraints.txt
# By environment and not by `-c`, so that the versions hold for what builds the packages too.
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet

.PHONY: help run test test-browser test-camera test-soak evaluate clean

help:
	@echo "make run [ARGS=...]       the live head, shown on a page of its own (ifmdm run ARGS)"
	@echo "make test                 run the tests and the linter"
	@echo "make test-browser         watch the page in a browser for longer, and show the figures"
	@echo "make test-camera          the virtual camera against a real driver, in an emulated machine (minutes)"
	@echo "make test-soak            ten minutes of clients that come and go: do memory, threads and tasks stay flat?"
	@echo "make evaluate ARGS=...    ifmdm evaluate ARGS, e.g. ARGS=\"--data clips/\""
	@echo "make clean                remove $(VENV) and the caches"

run: $(VENV)/.run
	@exec $(BIN)/ifmdm run $(ARGS)

test: $(VENV)/.test $(VENV)/.browser
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m beside --numprocesses auto --maxprocesses 4 --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m waiting --numprocesses 2 --dist load
	$(BIN)/python -m pytest -m "not beside and not waiting"
endif
	$(BIN)/ruff check .

test-browser: $(VENV)/.test $(VENV)/.browser
	IFMDM_REQUIRE_BROWSER=1 IFMDM_WATCH_SECONDS=30 $(BIN)/python -m pytest tests/test_browser.py $(ARGS)
	@tail -n +1 .cache/browser/*.json

# Debian 12, as root: it installs qemu and what a kernel module is compiled with.
test-camera: $(VENV)/.run
	@tests/camera/run.sh $(BIN)/python

# Ten minutes (ARGS=60 for an hour) of viewers, speakers, interrupts, portraits and sessions that come and go.
test-soak: $(VENV)/.test
	@PYTHONPATH=. $(BIN)/python tests/soak.py $(ARGS)

evaluate: $(VENV)/.evaluate
	@$(BIN)/ifmdm evaluate $(ARGS)

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing python3 and python3-venv."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >/dev/null; \
		else \
			echo "ifmdm needs Python 3.11 or newer with venv: sudo apt-get install python3 python3-venv" >&2; exit 1; \
		fi; }
	@$(PYTHON) -m venv --clear $(VENV)

# PyAV, OpenCV and the rest come as wheels; nothing is compiled and no system library is needed.
$(VENV)/.run: $(PINNED) | $(BIN)/python
	@echo "Installing ifmdm into $(VENV) (once; a few minutes with a slow network)."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(PINNED) | $(BIN)/python
	@echo "Installing ifmdm with what tests and training need into $(VENV) (once; torch is large)."
	@$(PIP) --editable '.[test,train]'
	@touch $@ $(VENV)/.run

$(VENV)/.browser: tests/browser/package-lock.json tests/browser/install.sh | $(BIN)/python
	@tests/browser/install.sh
	@touch $@

# mediapipe asks for opencv-contrib-python, which puts a cv2 that needs libGL over the headless one of the same
# version. The headless one goes back on top: it has all that anybody here calls.
$(VENV)/.evaluate: $(PINNED) | $(BIN)/python
	@echo "Installing ifmdm with what evaluation needs into $(VENV) (once)."
	@$(PIP) --editable '.[evaluate,train]'
	@$(PIP) --force-reinstall --no-deps opencv-python-headless
	@touch $@ $(VENV)/.run
