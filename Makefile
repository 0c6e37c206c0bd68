# PYTHON picks the interpreter, PIP_ARGS reaches every installation
# (for example: make test PIP_ARGS="--extra-index-url <another index>").
PYTHON ?= python3
PIP_ARGS ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt $(PIP_ARGS)
# Made anew when what was built changes; the Python sources are read where they lie.
READY := .venv/ready
# What the benchmark compares with: 110 MB more to download.
PEERS := .venv/peers
# The trainers that two examples use: some 45 MB more to download.
TRAINERS := .venv/trainers
# What builds the site, and what builds and checks a wheel.
WRITERS := .venv/writers
WHEELWRIGHTS := .venv/wheelwrights
# Experiments of the quicker kind, for a picture of the report.
SHOWN := identity batchmates redundant-bias
# The site's main pages, for the same.
SITE := index getting-started choosing examples patterns statistics distributed shipping traps migrating numerics backward \
	comparison performance evidence layers/BatchNorm2d rules/en112 reference/surgery reference/command
# An extension that watches its loads and stores, and what runs on it.
SANITIZED := build/sanitize
SANITIZED_TESTS ?= tests/test_cpu_instruction_sets.py tests/test_cpu_masks.py tests/test_cpu_processes.py \
	tests/test_epilogue.py tests/test_determinism.py tests/test_modes.py tests/test_straight.py \
	tests/test_straight_residual.py
# Triton asks once whether it is to interpret, so these run by themselves.
GPU_TESTS := $(wildcard tests/test_triton*.py)
# The newest of the CPU; benchmarks/<date>-gpu.json is the site's alone.
FIGURES ?= $(lastword $(sort $(wildcard benchmarks/*[0-9].json)))

.DEFAULT_GOAL := help
.PHONY: help demo examples bench readme-figures docs screenshots wheel wheel-test clinic test test-all gpu sanitize check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train one network with every normalizer and write report.html
	$(BIN)/evenorm compare

examples: $(TRAINERS) ## every example in a small form, with transformers, accelerate and Lightning
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "" tests/test_examples.py tests/test_doctor_callbacks.py examples/test_model.py \
		tests/test_synced.py::test_the_example_under_torchrun

bench: $(PEERS) ## time every layer, step and fusion against torch, torch.compile and JAX
	$(BIN)/evenorm bench --json benchmarks/$(shell date +%F).json --html bench.html

readme-figures: $(READY) ## put the newest of benchmarks/ into the README
	@test -n "$(FIGURES)" || { echo "benchmarks/ is empty: make bench fills it"; exit 1; }
	$(BIN)/evenorm bench --from $(FIGURES) --readme README.md

docs: $(WRITERS) ## the documentation's site in build/site; a broken link or a public name without a page fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "" tests/test_docs_site.py tests/test_docs_generator.py

screenshots: docs ## pictures of the site, the explorer and a lab report in build/screenshots; needs Chromium
	@mkdir -p build
	$(BIN)/evenorm explorer --output build/explorer.html
	$(BIN)/evenorm lab run $(SHOWN) --store build/lab
	$(BIN)/evenorm lab report $(SHOWN) --store build/lab --output build/lab.html
	$(BIN)/python tests/screenshots.py build/screenshots build/explorer.html build/lab.html \
		$(addprefix build/site/,$(addsuffix .html,$(SITE)))

wheel: $(WHEELWRIGHTS) ## sdist and manylinux wheel into dist/, torch's libraries left out
	rm -rf dist build/dist
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m build --no-isolation --outdir build/dist
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*' \
		--wheel-dir dist build/dist/*.whl
	mv build/dist/*.tar.gz dist
	$(BIN)/auditwheel show dist/*.whl

wheel-test: wheel ## install wheel and sdist into new environments without a compiler, and test them there
	PYTHON=$(PYTHON) PIP_ARGS="$(PIP_ARGS)" .ci/try-distribution dist/*.whl built
	PYTHON=$(PYTHON) PIP_ARGS="$(PIP_ARGS)" .ci/try-distribution dist/*.tar.gz absent

clinic: $(READY) ## the doctor on scripts after public threads: recall and precision
	PYTHONPATH=tests $(BIN)/python -m clinic

test: $(READY) ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "gpu and not slow" $(GPU_TESTS)

test-all: $(READY) ## every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not gpu"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m gpu $(GPU_TESTS)

gpu: $(READY) ## on a GPU: its tests, their loads and stores watched, and the benchmark
	OMP_NUM_THREADS=1 $(BIN)/pytest -m gpu $(GPU_TESTS)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=1 compute-sanitizer --error-exitcode 1 \
		$(BIN)/pytest -m "gpu and not slow" -k "not cuda_graph" $(GPU_TESTS)
	$(BIN)/evenorm bench --device cuda --json benchmarks/$(shell date +%F)-gpu.json

sanitize: $(READY) ## the extension's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PATH=$(abspath $(BIN)):$$PATH cmake -S . -B $(SANITIZED) -G Ninja -DEVENORM_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python \
		-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	PATH=$(abspath $(BIN)):$$PATH cmake --build $(SANITIZED)
	rm -rf $(SANITIZED)/site && mkdir $(SANITIZED)/site && cp -r src/evenorm $(SANITIZED)/site && rm -f $(SANITIZED)/site/evenorm/_cpu*
	cp $(SANITIZED)/_cpu* $(SANITIZED)/site/evenorm
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2 \
	PYTHONPATH=$(SANITIZED)/site:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	$(BIN)/python -S -m pytest -p no:cacheprovider $(SANITIZED_TESTS)

check: $(READY) ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## remove the environment and what was built
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt CMakeLists.txt $(wildcard cpp/*)
	$(PYTHON) -m venv .venv
	$(INSTALL) scikit-build-core nanobind cmake ninja
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

$(TRAINERS): $(READY)
	$(INSTALL) --no-build-isolation --editable '.[dev,examples]'
	@touch $@

$(WRITERS): $(READY)
	$(INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@touch $@

$(WHEELWRIGHTS): $(READY)
	$(INSTALL) --no-build-isolation --editable '.[dev,wheel]'
	@touch $@

$(PEERS): $(READY)
	$(INSTALL) --no-build-isolation --editable '.[dev,bench]'
	@touch $@
