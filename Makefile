# Everything a person or CI runs. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# More for pip, e.g. an index that carries CPU builds of torch.
PIP_ARGS ?=
# More for pytest, e.g. PYTEST_ARGS="-m 'not slow' -x".
PYTEST_ARGS ?=
# Processes that share the tests, with one thread each.
WORKERS ?= 2

# The public records that `make evidence` measures on.
DATA ?= $(or $(TOOLGUARD_DATA),../shared/data)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
EXTRAS := dev,langchain,plot,postgresql,dashboard,opentelemetry,embedding
# The wheel's own environment; see the target `wheel`.
WHEEL_VENV := build/wheel-venv

# The folder of this file must not be on sys.path: ./adapters would shadow a package of that name.
export PYTHONSAFEPATH := 1
# Small models lose time to more threads than this.
export OMP_NUM_THREADS ?= 2
# Nothing here needs a model from a hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
# An inherited path could put other code before the installed one.
unexport PYTHONPATH

.PHONY: help setup demo readme pictures evidence test check bench wheel constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## create .venv and install everything, pinned; once

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "toolguard needs Python 3.11 or newer; choose one with: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## calibrate the bundled agent, show guarded calls, write a picture
	env -u PYTHONSAFEPATH $(BIN)/python examples/demo.py

readme: $(STAMP)  ## write real output into the marked blocks of README.md
	env -u PYTHONSAFEPATH $(BIN)/python docs/generate/update_readme.py

pictures: $(STAMP)  ## take the pictures of report and dashboard in docs, after `make demo`
	$(BIN)/toolguard report --profile out/demo/profile --evaluation out/demo/evaluation.json \
	  --out out/demo/report.html
	env -u PYTHONSAFEPATH $(BIN)/python docs/generate/report_picture.py
	env -u PYTHONSAFEPATH $(BIN)/python docs/generate/dashboard_picture.py

evidence: $(STAMP)  ## measure signals, guarantee, gate, corrections, steering into docs/EVIDENCE.md
	env -u PYTHONSAFEPATH $(BIN)/python docs/generate/update_evidence.py --data $(DATA)

test: $(STAMP)  ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: $(STAMP)  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## measure, and write benchmarks/results.json
	env -u PYTHONSAFEPATH $(BIN)/python benchmarks/run.py

# The second environment is made without pip and borrows the dependencies of .venv through one
# .pth line. A .pth line only appends a folder to sys.path: the .pth files inside that folder are
# not read, so the hook of the editable install stays out and toolguard can come from the wheel
# alone. The smoke test asserts that it does.
wheel: $(STAMP)  ## build sdist and wheel, and try the wheel in a second environment
	rm -rf build dist
	@mkdir build
	$(BIN)/python -m build --outdir dist . > build/build.log 2>&1 || { cat build/build.log >&2; exit 1; }
	$(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(WHEEL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	$(BIN)/python -m pip --python $(WHEEL_VENV)/bin/python install --quiet --no-deps --no-index dist/*.whl
	$(WHEEL_VENV)/bin/python .ci/smoke_wheel.py dist/*.whl

constraints: $(STAMP)  ## rewrite constraints.txt from what is installed now
	$(BIN)/python .ci/freeze.py > constraints.new
	mv constraints.new constraints.txt
	@touch $(STAMP)

clean:  ## remove what was built or cached; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
