# Everything below does its own set-up: Python 3.11+, make, git and a package registry are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
READY := $(VENV)/.ready
DEMO ?= demo

export UV_NO_PROGRESS = 1
# Compiling once, here, saves seconds at every later start.
export UV_COMPILE_BYTECODE = 1

.PHONY: demo test lint torture bench lowest docs hooks clean requirements

demo: $(READY)
	$(BIN)/embedcache demo --out $(DEMO)

# Files side by side, one for each core; the checker of all commands has workers of its own.
test: lint
	$(BIN)/python -m pytest -m "not torture" --ignore tests/together -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -m "not torture" tests/together

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

torture: $(READY)
	$(BIN)/python -m pytest -m torture

bench: $(READY)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# The lowest versions that pyproject.toml allows, in an environment of its own.
lowest: $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .lowest
	$(UV) pip install --quiet --python .lowest/bin/python --resolution lowest-direct \
		-r pyproject.toml --extra faces --extra demo
	.lowest/bin/python -m tests.lowest

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "read it: $(PYTHON) -m http.server --directory site, then http://localhost:8000"

hooks: $(READY)
	$(UV) tool install --quiet pre-commit
	$(UV) tool run --quiet pre-commit install

# uv comes into a private environment unless the machine has one.
$(UV):
	$(PYTHON) -m venv .uv
	@if command -v uv >/dev/null; then ln -sf "$$(command -v uv)" $(UV); \
	else .uv/bin/python -m pip install --quiet uv; fi

# `uv pip sync` installs exactly the pins and resolves nothing, so that facenet-pytorch's own stale
# pins have no say (docs/decisions/002).
$(READY): requirements.txt pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# Pins for Python 3.11 to 3.13 on every platform, without any registry's address.
requirements: $(UV)
	rm -f requirements.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		pyproject.toml --output-file requirements.txt > /dev/null

clean:
	rm -rf $(VENV) .uv .lowest build dist site $(DEMO)
