#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer in build/asan
# and runs the tests of ops and offload on it, under the Python and torch that are there.
#
#   tests/sanitize/asan.sh [python] [pytest arguments]
#
# Leaks are not looked for here (Python and torch keep what they keep): tests/faults does.
# Left out: what measures memory, which the sanitizer multiplies; torch's own compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
[ $# -gt 0 ] && shift

libraries=
for name in libasan.so libubsan.so libstdc++.so.6; do
    path=$(${CC:-gcc} -print-file-name="$name")
    if [ ! -e "$path" ]; then # it prints the bare name when there is none
        echo "asan: no $name beside ${CC:-gcc}: a compiler with sanitizers is needed" >&2
        exit 1
    fi
    libraries="$libraries $path"
done

GNNOFFLOAD_SANITIZE=1 GNNOFFLOAD_CUDA=0 "$python" setup.py -q build --build-lib build/asan

export LD_PRELOAD="${libraries# }"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc PYTHONPATH="$PWD/build/asan" PYTHONSAFEPATH=1
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
if [ $# -eq 0 ]; then
    set -- tests/ops tests/offload -m "not slow" \
        --ignore tests/ops/test_compile.py --ignore tests/ops/test_memory.py \
        --ignore tests/ops/test_leaks.py --ignore tests/ops/test_ops_doctest.py \
        --ignore tests/offload/test_process.py \
        -k "not opcheck and not compiled and not peak_resident and not ten_thousand"
fi
exec "$python" -m pytest -q -p no:cacheprovider "$@"
