"""The nvcc gate: each architecture compiles without a warning, a spill or local
memory; registers are reviewed; the PTX has the loads that the kernels promise; and the
launchers say what is wrong on a machine without a driver. None of this needs a GPU.
"""

import ctypes
import os
import re

import pytest

nvcc_kernels = pytest.importorskip("nvcc_kernels")
if not nvcc_kernels.has_nvcc():
    pytest.skip("no nvcc on PATH: the CUDA kernels were not compiled", True)

LOAD_16 = r"ld\.global\.nc\.(v4\.\w32|v2\.\w64)"
LOAD_8 = r"ld\.global\.nc\.(v2\.\w32|v4\.\w16)"
STORE_8 = r"st\.global\.(v2\.\w32|v4\.\w16)"
STORE_16 = r"st\.global\.(v4\.\w32|v2\.\w64)"
IN_FLIGHT = 4  # GNN_EDGES_IN_FLIGHT of csrc/cuda/lanes.cuh
NO_ROWS = ("edge_softmax_cuda",)  # numbers an edge and head, moved one by one
REDUCTIONS = (
    "aggregate",
    "softmax_aggregate",
    "gated",
)  # several types in a row, several rows an entry
MULTIPLY, ONLY_ADD = ("spmm_items", "sddmm", "heads"), ("spmm_join", "gine")


# All seven take ten minutes: `make nightly` asks for them, else those of development.
ARCHS = nvcc_kernels.ARCHS if os.environ.get("GNNOFFLOAD_ALL_ARCHS") else (80, 90)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("source", nvcc_kernels.sources(), ids=lambda path: path.stem)
def test_each_file_compiles_strictly_into_reviewed_registers(source):
    found = nvcc_kernels.usage(source, ARCHS)
    kernels = {kernel for kernel, _ in found}
    assert kernels and set(found) == {(k, arch) for k in kernels for arch in ARCHS}
    for (kernel, arch), (registers, _) in found.items():
        assert registers <= most_registers(kernel), (kernel, arch)
    version, reviewed = nvcc_kernels.reviewed()
    if version == nvcc_kernels.nvcc_version():  # another ptxas, other registers
        assert found.items() <= reviewed.items()


def most_registers(kernel):
    """128, four blocks on a multiprocessor; 168 where a pass of attention holds three
    matrices' rows of two entries and their sums; the rare gradient has more."""
    if kernel.startswith("attention_gatv2_attr"):
        return 255
    return 168 if kernel.startswith("attention") else 128


def test_a_spill_is_an_error(tmp_path):
    source = tmp_path / "spills.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024) spills_kernel(float *p) {\n"
        "    float a[200];\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 200; i++) a[i] = p[i * 1024];\n"
        "    __syncthreads();\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 200; i++) p[i * 1024 + 1] = a[i] * a[199 - i];\n"
        "}\n"
    )
    with pytest.raises(RuntimeError, match=r"spill|local memory"):
        nvcc_kernels.usage(source, archs=[80])


@pytest.mark.parametrize("source", nvcc_kernels.sources(), ids=lambda path: path.stem)
def test_ptx_has_the_promised_loads(source):
    """A wide kernel reads rows 16 bytes at a time, all in flight of them; products are
    added in one rounding; nothing goes through local memory, and no kernel divides."""
    kernels = nvcc_kernels.ptx_of(source)
    wide = [kernel for kernel in kernels if kernel.endswith(", wide>")]
    assert wide or source.stem in NO_ROWS
    for kernel, body in kernels.items():
        for line in body:
            assert not re.match(r"(div|rem)\.|\.local|(ld|st)\.local", line), kernel
        loads = [line for line in body if re.match(LOAD_16, line)]
        halves = [line for line in body if re.match(LOAD_8, line)]
        if kernel in wide and kernel.startswith(REDUCTIONS):
            assert len(loads) + len(halves) >= reduction_loads(kernel), kernel
        else:
            wanted = 0 if kernel not in wide else row_loads(kernel)
            assert len(loads) == wanted, kernel
        multiplies = [line for line in body if re.match(r"fma\.rn\.f(32|64)", line)]
        assert multiplies or not kernel.startswith(MULTIPLY), kernel
        assert not multiplies or not kernel.startswith(ONLY_ADD), kernel
        stores = [line for line in body if re.match(f"{STORE_16}|{STORE_8}", line)]
        writes = kernel in wide and not re.search(r"sddmm|dst_kernel.*gat,", kernel)
        assert bool(stores) == writes, kernel


def row_loads(kernel):
    """16-byte loads of a wide kernel: those in flight; gine's gradients hold a row of
    x besides, loaded at the start and where a row ends (once for each entry in flight).
    """
    if kernel.startswith("attention"):
        name, dtype, mode = re.findall(r"[a-z0-9_]+", kernel)[:3]
        few = ("float", "double") if "src" in name else ("float",)
        return ATTENTION_LOADS[name][mode][dtype in few]
    if kernel.startswith("gine"):
        return {"sum": 2 * 2, "jvp": 2 * 4, "vjp": 2 * 2 + 1 + 2}[kernel[-10:-7]]
    return IN_FLIGHT * (2 if "sddmm" in kernel else 1)


def reduction_loads(kernel):
    """Accesses of 16 bytes, or of 8 where a lane holds four 16-bit numbers: messages of
    x and edge in flight, and those of a chunk's first; gradients besides a and b."""
    if kernel.startswith("softmax"):
        return 2 * 2  # or x's own, lse, y, gradient
    if kernel.startswith(
        "gated"
    ):  # of each two: own, at the start and later, gathered,
        return 2 * 4 + (", vjp," in kernel)  # edge; and a gradient
    mode = "max" if ", max," in kernel else "all"
    if kernel.startswith("aggregate_vjp"):
        return {"max": 2, "all": 7}[mode]
    return {"max": 4 * 2, "all": 2 * 2 + 2}[mode]


# Those of 2 entries in flight and of 4 (float); the row's own stand before the loop
# over slices and in it; the loop over rows of edge_weight is unrolled by 2.
ATTENTION_LOADS = {
    "attention_kernel": {
        **{"gat": (4, 4), "gatv2": (8, 12), "dot": (8, 14)},
        **{"gatv2_attr": (9, 11), "dot_attr": (6, 10)},
    },
    "attention_dst_kernel": {
        **{"gat": (6, 6), "gatv2": (10, 14), "dot": (10, 16)},
        **{"gatv2_attr": (11, 11), "dot_attr": (8, 8)},
    },
    "attention_src_kernel": {"dot": (4, 8), "gatv2": (8, 8), "gatv2_attr": (9, 9)},
}


class Csr(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("n_rows", "n_cols", "n_edges")],
        *[(name, ctypes.c_void_p) for name in ("rowptr", "col", "eid")],
        ("eid_dtype", ctypes.c_int),
        ("split", ctypes.c_void_p),
        ("n_split", ctypes.c_int64),
    ]


class SpmmArgs(ctypes.Structure):
    _fields_ = [
        ("a", Csr),
        ("dtype", ctypes.c_int),
        ("n_features", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("pointers", ctypes.c_void_p * 6),
    ]


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    library = ctypes.CDLL(
        str(nvcc_kernels.product_library(tmp_path_factory.mktemp("cu")))
    )
    library.gnn_message.restype = ctypes.c_char_p
    library.gnn_spmm_cuda.argtypes = [ctypes.POINTER(SpmmArgs), ctypes.c_uint64]
    return library


def spmm(launchers, n_rows=3, n_features=8, **graph):
    args = SpmmArgs(Csr(n_rows=n_rows, n_cols=3, n_edges=4, **graph), 0, n_features)
    args.x_stride = n_features
    status = launchers.gnn_spmm_cuda(ctypes.byref(args), 0)
    return status, launchers.gnn_message().decode()


def test_launchers_check_before_they_launch(launchers):
    assert spmm(launchers, n_rows=0)[0] == 0
    assert spmm(launchers, n_features=0)[0] == 0
    status, said = spmm(launchers, n_features=-1)
    assert status and said.startswith("spmm: number of features must be in [0, 2^30)")


def test_without_a_driver_a_launch_fails_in_words(launchers):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has a driver")
    for _ in range(2):
        status, said = spmm(launchers)
        assert status and "CUDA driver version is insufficient" in said
