"""The device language of executor.h is an allow-list."""

import re
import subprocess

import pytest
from cuda_executor import (
    CXX,
    HOOKS,
    KERNEL_FLAGS,
    ROOT,
    CompileError,
    NoToolkit,
    compile_one,
    run,
    toolkit_include,
)

FORBIDDEN = {
    "atomicAdd(y, 1.0f)": "atomicAdd",
    "atomicCAS(u, 0u, 1u)": "atomicCAS",
    "y[0] = __shfl(1.0f, 0)": "__shfl",
    "u[0] = __activemask()": "__activemask",
    "u[0] = __match_any_sync(~0u, 1)": "__match_any_sync",
    "u[0] = __reduce_add_sync(~0u, 1u)": "__reduce_add_sync",
    "__threadfence()": "__threadfence",
    "y[0] = __expf(x[0])": "__expf",
    "y[0] = __ldcg(x)": "__ldcg",
    "__nanosleep(1)": "__nanosleep",
    "y[0] = clock64()": "clock64",
    "extern __shared__ float a[]; y[0] = a[0]": "storage|specifiers",
    "short s = 1; y[0] = __shfl_sync(~0u, s, 0)": "4 or 8 bytes",
}


SOURCE = """#include "executor.h"
__device__ float table[4];
__global__ void kernel(float *y, unsigned *u, const float *x) {
    y[0] = *x + table[0];
    u[0] = 1;
    STATEMENT;
}
"""


def compile_text(folder, text):
    (folder / "kernel.cu").write_text(text)
    flags = [*KERNEL_FLAGS, "-fsyntax-only", f"-isystem{toolkit_include()}"]
    run([CXX, *flags, "-Itests/cuda_on_cpu", "-Icsrc", folder / "kernel.cu"])


def test_the_file_itself_compiles(tmp_path):
    compile_text(tmp_path, SOURCE.replace("STATEMENT", ""))


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_name_does_not_compile(tmp_path, statement):
    with pytest.raises(CompileError, match=FORBIDDEN[statement]):
        compile_text(tmp_path, SOURCE.replace("STATEMENT", statement))


@pytest.mark.parametrize("kind", ["__constant__", "__managed__"])
def test_other_memory_does_not_compile(tmp_path, kind):
    with pytest.raises(CompileError, match=kind):
        compile_text(tmp_path, SOURCE.replace("__device__", kind))


def test_without_the_headers_a_person_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: tmp_path)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(NoToolkit, match="pip install nvidia-cuda-runtime"):
        toolkit_include.__wrapped__()
    include = tmp_path / "nvidia" / "cu13" / "include"
    include.mkdir(parents=True)
    (include / "cuda_fp16.h").touch()
    assert toolkit_include.__wrapped__() == include


KERNELS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu"))
OURS = re.compile(
    r"__tsan_|__ubsan_|_ZN4exec|gnn_"  # hooks, the executor, the C core
    r"|__popcount|_Unwind_|__gxx_personality|_GLOBAL_OFFSET_TABLE_"  # the compiler's
    r"|__tls_get_addr$"  # the address of shared memory
    r"|(exp|log|sqrt)f?$"  # numbers in, a number out
)


@pytest.mark.parametrize("source", KERNELS)
def test_kernels_call_nothing_else(source):
    """A call of libc (memcpy, say) would touch memory behind the hooks."""
    compiled = compile_one(CXX, [*KERNEL_FLAGS, HOOKS], source)
    names = subprocess.run(["nm", "-u", compiled], capture_output=True, text=True)
    needed = names.stdout.split()[1::2]
    assert [name for name in needed if not OURS.match(name)] == []
    if not source.endswith("edge_softmax_cuda.cu"):  # which moves no rows
        assert "__tsan_read16" in needed  # the packs are seen, as such
