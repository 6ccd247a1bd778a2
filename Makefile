# `make demo` and `make test` need only Python 3.11+, venv and make; they install everything else into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# READY marks a finished set-up. Its name has a checksum of three files: if one changes, the set-up runs again.
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d ' ' -f 1)
# Detectron2 is not on PyPI under its own name. This wheel has the Python code of upstream commit a59f0563. Its compiled
# part works on Python 3.10 only, and kp_ray runs without it. GPU machines build Detectron2 from source: docs/install.md.
DETECTRON2 := sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561

.PHONY: help setup demo test test-slow test-faults lint format bench clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## Create .venv with kp_ray and its dependencies.

# pip compiles no module, because most of the installed modules are never imported. The others are compiled once here:
# otherwise every process of a cluster would compile them, at each start if PYTHONDONTWRITEBYTECODE is set.
$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[train,dev]'
	echo '$(DETECTRON2)' > $(VENV)/detectron2.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --only-binary=:all: \
		--python-version 3.10 --implementation cp --abi none --platform any --require-hashes -r $(VENV)/detectron2.txt \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import kp_ray.cli.main, kp_ray.doctor, kp_ray.reporting.page, kp_ray.tuning.search, kp_ray.prediction.run'
	$(BIN)/python -m compileall -qq -j 0 "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ray"
	rm -f $(VENV)/.ready-*
	touch $@

demo: setup  ## Run the whole pipeline on generated people, in runs/demo.
	$(BIN)/kp-ray sample runs/demo/data --images 400 --test-images 40 --run-dir runs/demo
	$(BIN)/kp-ray run runs/demo/data/config.yaml

test: setup  ## Run the tests.
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## Run the slow tests but those of test-faults; takes long.
	$(BIN)/python -m pytest -m slow --ignore tests/faults --durations 20

test-faults: setup  ## Run all tests with kills, full disks, damaged and malformed files; takes over an hour.
	$(BIN)/python -m pytest tests/faults --hypothesis-profile siege --durations 20

lint: setup  ## Run ruff, mypy and the import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Run the benchmarks of the store and write their tables to benchmarks/results.
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/cpus.py
	$(BIN)/python benchmarks/read.py

clean:  ## Remove .venv and caches; runs/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find kp_ray jobs tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
