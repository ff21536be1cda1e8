# gnnoffload: `make` lists the targets. V=1 shows the commands.
TORCH ?= 2.13.0
TORCH_INDEX ?=
PYTHON ?=
VENV ?= .venv
CC ?= cc

V ?= 0
Q := $(if $(filter 1,$(V)),,@)
export TORCH TORCH_INDEX PYTHON VENV CC V

PY := "$(VENV)/bin/python"
PYTEST := $(PY) -m pytest -q
C_FILES := $(wildcard csrc/*.h csrc/*/*.[ch] csrc/cuda/*.cu csrc/cuda/*.cuh tests/c/*.[ch] tests/faults/*.c tests/sim/*.[ch] tests/*/*.cpp tests/cuda_on_cpu/*.h \
    tests/cuda_on_cpu/*.cu)
OP ?=
TSAN_TESTS := test_link_file test_link_file_faults test_link_ram test_offload_schedules
# Threads that wait should not spin: tests and copies share the cores with them.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo test check ctest asan tsan mutants arm bench race-demo gpu-day fmt \
    lint compat build venv clean nightly

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | \
	    while IFS=@ read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done
	@echo "  with           TORCH=2.11.0 TORCH_INDEX=url PYTHON=python3.12 VENV=.venv V=1"

demo: build ## set up and run the main job: a mesh GNN with and without offload
	$(Q)$(PY) -m gnnoffload demo $(ARGS)

test: build ctest ## set up and run every test
	$(Q)GNNOFFLOAD_CTEST_RESULTS=build/ctest $(PYTEST) $(ARGS)

check: build lint ctest ## before each commit: format, lint, C tests, fast tests
	$(Q)OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" $(ARGS)

ctest: ## C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(Q)$(MAKE) --no-print-directory -s -O -j"$$(nproc)" -f tests/c/ctest.mk

asan: venv ## tests of ops and offload with a sanitized extension (5 to 15 minutes)
	$(Q)tests/sanitize/asan.sh $(PY) $(ARGS)

tsan: ## C tests of the links, the engine and the kernels' threads under ThreadSanitizer
	$(Q)$(MAKE) --no-print-directory -s -j"$$(nproc)" -f tests/c/ctest.mk \
	    SANITIZE=thread T="$(or $(T),$(TSAN_TESTS))"

mutants: build ## test the tests: build each known mistake, some test must fail
	$(Q)nice -n 5 $(PY) tests/mutants/run_mutants.py $(ARGS)

arm: ## C tests for 64-bit Arm under qemu-user, pages of 4 KiB and 64 KiB
	$(Q)tools/arm.sh

nightly: build ## everything slow: mutants, Arm, seeds, valgrind, threads, a fuzzer
	$(Q)tools/nightly.sh

bench: build ## measure: OP=spmm|attention|aggregate|minibatch|layers|hooks|offload|mlp-sweep
	$(Q)$(PY) -m gnnoffload bench $(OP) $(ARGS)

race-demo: venv ## one page: a public race and our schedule, side by side
	$(Q)$(PY) tests/sim/race_demo.py $(ARGS)

# No network and no virtual environment of ours: whichever Python has torch.
GPU_PY := $(if $(wildcard $(VENV)/bin/python),$(PY),$(or $(PYTHON),python3))
OWN_ARCH := import torch; print("%d.%d" % torch.cuda.get_device_capability())

gpu-day: ## on a GPU: build, test, measure, into benchmarks/ledger/ (8 minutes)
	$(Q)GNNOFFLOAD_CUDA=1 TORCH_CUDA_ARCH_LIST="$$($(GPU_PY) -c '$(OWN_ARCH)')" \
	    $(GPU_PY) setup.py -q build_ext --inplace
	$(Q)$(GPU_PY) -m gnnoffload bench gpu-day $(ARGS)

lint: venv
	$(Q)$(PY) -m ruff format --quiet --check . || { echo "run: make fmt"; exit 1; }
	$(Q)$(PY) -m ruff check --quiet .
	$(Q)"$(VENV)/bin/clang-format" --dry-run -Werror $(C_FILES)

fmt: venv ## format C and Python
	$(Q)$(PY) -m ruff format --quiet .
	$(Q)$(PY) -m ruff check --quiet --fix --exit-zero .
	$(Q)"$(VENV)/bin/clang-format" -i $(C_FILES)

compat: build ## tests on torch 2.10.0, 2.11.0 and 2.15.0 (12 GB of downloads)
	$(Q)for version in 2.10.0 2.11.0 2.15.0; do \
	    VENV=".venv-torch-$$version" TORCH=$$version tools/venv.sh && \
	    echo "  TEST torch $$version" && \
	    ".venv-torch-$$version/bin/python" -m pytest -q $(ARGS) || exit 1; \
	done

clean: ## remove what was built (the virtual environment stays)
	$(Q)rm -rf build dist gnnoffload/_C.*.so *.egg-info

build: venv ## compile what changed in csrc/
	$(Q)$(PY) setup.py -q build_ext --inplace

venv:
	$(Q)tools/venv.sh
