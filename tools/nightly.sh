#!/usr/bin/env bash
# What is too slow for each change: every test, every mutant, Arm, threads under
# ThreadSanitizer, C tests under valgrind, many seeds, a minute of libFuzzer.
# COMPAT=1 also runs the tests on other releases of torch.
set -euo pipefail

export GNNOFFLOAD_STRICT_SKIPS=1 GNNOFFLOAD_ALL_ARCHS=1 GNN_TEST_FORKS=9
failed=()
lane() {
    local begin=$SECONDS
    echo "nightly: $*"
    "$@" </dev/null || failed+=("$*")
    echo "nightly: $* took $((SECONDS - begin)) s"
}

ctest() {
    make --no-print-directory -s -O -k -j"$(nproc)" -f tests/c/ctest.mk LIMIT=1800 "$@"
}

memory() { # what only valgrind sees: values that nobody wrote
    command -v valgrind >/dev/null || { echo "sudo apt install valgrind" >&2; return 1; }
    local tests="test_core_csr test_core_fuzz test_cpu_isa test_status test_offload_engine"
    tests+=" test_offload_schedules test_link_slots test_link_checksums test_link_ram"
    ctest SANITIZE=none T="$tests" \
        RUN="valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite"
}

seeds() {
    GNN_TEST_SEEDS=20000 ctest T="test_offload_schedules"
}

fuzz() {
    local clang
    clang=$(command -v clang || command -v clang-14) ||
        { echo "sudo apt install clang libclang-rt-14-dev" >&2; return 1; }
    mkdir -p build/fuzz/corpus
    "$clang" -std=c11 -g -O1 -DGNN_LIBFUZZER -D_GNU_SOURCE -Icsrc -Itests/c \
        -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        csrc/core/*.c tests/c/test_core_fuzz.c -lm -o build/fuzz/fuzz_csr
    build/fuzz/fuzz_csr -max_total_time="${FUZZ_SECONDS:-60}" -max_len=256 \
        -print_final_stats=0 -verbosity=0 build/fuzz/corpus
}

# A single lane by name: tools/nightly.sh fuzz
if [ $# -gt 0 ]; then
    for name; do lane "$name"; done
else
    lane make test
    lane make arm
    lane make mutants
    lane make tsan
    lane make asan
    lane memory
    lane seeds
    lane fuzz
    [ "${COMPAT:-0}" = 0 ] || lane make compat
fi
if [ ${#failed[@]} -gt 0 ]; then
    printf 'nightly: FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "nightly: all lanes passed"
