# `make demo` and `make test` do all their own set-up in .venv; they need Python 3.9 to 3.14, g++ and make.

SUPPORTED := import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
# Where one of these has no wheel for this Python and machine, pip stops instead of compiling it for half an hour.
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary numpy,scipy,scikit-learn
READY := .venv/ready

.PHONY: demo lint test test-all clean

demo: $(READY)
	.venv/bin/python -m demo.run

lint: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check

test: $(READY)
	.venv/bin/python -m pytest -q

test-all: $(READY)
	.venv/bin/python -m pytest -q --slow

$(READY): requirements.txt requirements-jittor.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.9 to 3.14 is missing; \
	install one, or: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.9 to 3.14; \
	install one, or: make PYTHON=/path/to/python3.11"; exit 1; }
	@command -v g++ >/dev/null || { echo "g++ is missing, with which Jittor compiles itself; \
	install it (Debian, Ubuntu: apt install g++)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing; \
	install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
		{ echo "Python.h is missing, which Jittor compiles against; \
	install it (Debian, Ubuntu: apt install python3-dev)"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing what the program needs into .venv: 1 to 5 minutes, once."
	$(PIP) -r requirements.txt -r requirements-dev.txt
	$(PIP) --no-deps -r requirements-jittor.txt
	@touch $(READY)

clean:
	rm -rf .venv demo/build
