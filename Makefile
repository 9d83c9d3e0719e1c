# make install | quickstart [DATA=BEIR folder, zip or hub name] | test | check | docs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss-gpu where there is an NVIDIA driver, faiss-cpu elsewhere; never both.
FAISS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Processes that share the tests.
WORKERS ?= 2

.PHONY: install quickstart test check docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ltrr needs Python >= 3.11: make PYTHON=python3.12 install"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e '.[$(FAISS),serve,bench,dev]'
	touch $@

quickstart: install
	$(BIN)/python scripts/quickstart.py $(if $(DATA),--data '$(DATA)')

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_floors.py

docs: install
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs build *.egg-info
