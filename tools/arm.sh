#!/bin/sh
# C core, CPU kernels, engine and links built for 64-bit Arm, their tests run under
# qemu-user; those that meet page sizes once more with Grace's 64 KiB.
set -eu

missing=''
for pair in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64:qemu-user; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
if [ -n "$missing" ]; then
    echo "gnnoffload: make arm needs: sudo apt install$missing" >&2
    exit 1
fi
run() {
    make --no-print-directory -s -O -j"$(nproc)" -f tests/c/ctest.mk ARM=1 LIMIT=900 "$@"
}
run
for test in tests/c/test_link_*.c tests/c/test_offload_*.c; do
    run PAGE=65536 T="$(basename "$test" .c)"
done
