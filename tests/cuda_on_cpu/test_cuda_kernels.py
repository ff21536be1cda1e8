"""spmm and sddmm of csrc/cuda beyond the matrix of tests/ops: addresses, grids, bits.

Exact-integer data unless a test says otherwise: then every result has one right value.
"""

import mmap
from pathlib import Path

import cuda_ops
import pytest
import torch
from cuda_executor import Refused
from cuda_ops import Call, ops_library, run_sddmm, run_spmm, traffic

import gnnoffload as go

pytestmark = pytest.mark.law(1, 2)

DTYPES = cuda_ops.DTYPES
NONE = torch.empty(0)
FMA = ("-mfma", "-ffp-contract=fast", "-fexpensive-optimizations")
DEGREES = [0, 1, 31, 32, 33, 255, 256, 257, 0, 1023, 1024, 1025, 2, 0]


@pytest.fixture
def ops():
    yield ops_library()
    ops_library().reset()


def integers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-4, 5, shape, generator=generator)


def graph_of(degrees, n_src, seed=0):
    """(edge_index, the graph as an op takes it), edges in a random order"""
    destination = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, n_src, destination.shape, generator=generator)
    shuffle = torch.randperm(destination.numel(), generator=generator)
    edges = torch.stack((source, destination))[:, shuffle]
    return edges, go.Graph(edges, (n_src, len(degrees))).args(with_csc=True)


def oracle(edges, n_dst, x, weight):
    message = x[edges[0]] * weight[:, None]
    y = torch.zeros(n_dst, x.shape[1], dtype=torch.int64)
    return y.index_add(0, edges[1], message)


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offsets", [(0, 0), (1, 1), (2, 0), (0, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("width", [1, 3, 4, 8, 33, 64])
def test_pointers_off_by_elements(offsets, width, dtype):
    """x and y, then u and v, begin so many elements past a 256-byte boundary."""
    edges, graph = graph_of([5, 0, 40, 300], 20)
    x, weight = integers(20, width), integers(edges.shape[1])
    args = (x.to(dtype), weight.to(dtype), NONE, NONE, *graph)
    y = cuda_ops.spmm(*args, offsets=offsets)
    assert torch.equal(y, oracle(edges, 4, x, weight).float().to(dtype))
    a = integers(4, width, seed=1)
    args = (a.to(dtype), x.to(dtype), NONE, NONE, *graph)
    z = cuda_ops.sddmm(*args, offsets=offsets)
    assert torch.equal(z, (a[edges[1]] * x[edges[0]]).sum(1).float().to(dtype))


@pytest.mark.parametrize("eid_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edge_numbers_and_scales(dtype, eid_dtype):
    edges, (rowptr, col, eid, *rest) = graph_of(DEGREES, 40)
    graph = (rowptr, col, eid.to(eid_dtype), *rest)
    scale_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    s = 2.0 ** torch.arange(len(DEGREES)).remainder(3).to(scale_dtype)
    t = 2.0 ** -torch.arange(40).remainder(2).to(scale_dtype)
    x, weight = integers(40, 20) * 2, integers(edges.shape[1])
    y = cuda_ops.spmm(x.to(dtype), weight.to(dtype), s, t, *graph)
    scaled = (x * t[:, None]).long()
    expected = oracle(edges, len(DEGREES), scaled, weight) * s[:, None].long()
    assert torch.equal(y, expected.double().to(scale_dtype).to(dtype))
    a = integers(len(DEGREES), 20)
    z = cuda_ops.sddmm(a.to(dtype), x.to(dtype), s, t, *graph)
    expected = (a[edges[1]] * scaled[edges[0]]).sum(1) * s[edges[1]].long()
    assert torch.equal(z, expected.double().to(scale_dtype).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adjoint(dtype):
    """<A x, y> = <x, A^T y>, exactly."""
    edges, graph = graph_of(DEGREES, 40)
    back = go._dispatch.transposed(graph)
    x, y = integers(40, 8).to(dtype), integers(len(DEGREES), 8, seed=3).to(dtype)
    weight = torch.ones(edges.shape[1]).to(dtype) * 0.25
    forward = cuda_ops.spmm(x * 0.5, weight, NONE, NONE, *graph).double()
    backward = cuda_ops.spmm(y * 0.5, weight, NONE, NONE, *back).double()
    if dtype is torch.float32:  # 16-bit results are rounded
        assert (forward * y).sum() == (x * backward).sum() != 0
    assert torch.equal(
        forward.float(),
        (oracle(edges, len(DEGREES), x.long(), weight.new_ones(len(weight)).long()) / 8)
        .to(dtype)
        .float(),
    )


# ------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "degrees, width",
    [([0, 33, 257, 0, 600, 1, 130, 2], 140), (DEGREES * 2, 20)],
    ids=["slices", "groups"],
)
def test_grid_strides(degrees, width, dtype):
    """With at most 2 blocks by 1 each warp walks many items and slices, and groups of
    one warp walk items of different length."""
    small = ops_library("-DGNN_MAX_BLOCKS=2", "-DGNN_MAX_SLICES=1")
    edges, graph = graph_of(degrees, 40)
    a, x = integers(len(degrees), width), integers(40, width)
    weight = integers(edges.shape[1])
    args = (x.to(dtype), weight.to(dtype), NONE, NONE, *graph)
    y = cuda_ops.spmm(*args, library=small)
    assert torch.equal(y, oracle(edges, len(a), x, weight).float().to(dtype))
    z = cuda_ops.sddmm(a.to(dtype), x.to(dtype), NONE, NONE, *graph, library=small)
    assert torch.equal(z, (a[edges[1]] * x[edges[0]]).sum(1).float().to(dtype))


def reserved(n_rows, width, dtype):
    """A tensor of zeros that takes address space; memory only where it is touched."""
    no_reserve = 0x4000  # MAP_NORESERVE, which Python has no name for before 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    space = mmap.mmap(-1, n_rows * width * dtype.itemsize, flags=flags)
    return torch.frombuffer(space, dtype=dtype).view(n_rows, width)


class Space:
    """Memory for tensors that are too large to copy: registered where they are."""

    def __init__(self, library):
        self.library, self.kept = library, []

    def input(self, name, tensor, offset=0):
        return self.register(name, tensor, False)

    def register(self, name, tensor, output):
        n_bytes = tensor.numel() * tensor.element_size()
        self.library.register(tensor.data_ptr(), n_bytes, name, output)
        self.kept.append(tensor)
        return tensor.data_ptr()

    def free(self):
        for tensor in self.kept:
            self.library.free(tensor.data_ptr())


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_more_than_2_to_the_31_elements(ops, order):
    """Row times width leaves 32 bits, in x and in y; a few blocks of the grid run."""
    n, width = 2**21 + 200, 1024
    assert (n - 100) * width > 2**31
    x, y = reserved(n, width, torch.bfloat16), reserved(n, width, torch.bfloat16)
    degrees = torch.zeros(n, dtype=torch.int64)
    degrees[0], degrees[-1], degrees[-40] = 2, 3, 1
    rowptr = torch.zeros(n + 1, dtype=torch.int64)
    rowptr[1:] = degrees.cumsum(0)
    col = torch.tensor([n - 1, 1, n - 2, 0, n - 1, n - 3], dtype=torch.int32)
    x[[0, 1, n - 3, n - 2, n - 1]] = integers(5, width).bfloat16()
    space = Space(ops)
    ops.set_order(order, 4)
    ops.set_blocks([0, -2, -1])
    call = Call(ops, space, (rowptr, col, torch.empty(0).int(), n, n), split=False)
    args = cuda_ops.SpmmArgs(a=call.csr, dtype=DTYPES.index(x.dtype), n_features=width)
    args.x, args.x_stride = call.matrix("x", x)
    args.y = space.register("y", y, True)
    ops.call("gnn_spmm_cuda", cuda_ops.ctypes.byref(args), cuda_ops.ctypes.c_uint64(0))
    long = x[[0, 1, n - 3, n - 2, n - 1]].float()
    expected = torch.stack((long[4] + long[1], long[3], long[0] + long[4] + long[2]))
    assert torch.equal(y[[0, n - 40, n - 1]].float(), expected)
    assert y[n - 39 : n - 1].count_nonzero() == 0 == y[1:5].count_nonzero()

    ops.set_blocks()
    args = cuda_ops.SddmmArgs(a=call.csr, dtype=DTYPES.index(x.dtype), n_features=width)
    args.u, args.u_stride = args.v, args.v_stride = call.matrix("x", x)
    z = torch.zeros(6, dtype=torch.bfloat16)
    args.z = space.register("z", z, True)
    ops.call("gnn_sddmm_cuda", cuda_ops.ctypes.byref(args), cuda_ops.ctypes.c_uint64(0))
    row = torch.tensor([0, 0, n - 40, n - 1, n - 1, n - 1])
    expected = (x[row].long() * x[col.long()].long()).sum(1)
    assert torch.equal(z, expected.float().bfloat16())
    space.free()


# -------------------------------------------------------------------------------- bits


@pytest.mark.slow
@pytest.mark.parametrize("width", [33, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_one_chunk_have_the_bits_of_the_cpu(dtype, width):
    """With multiply-add contracted, as nvcc does it. Real data."""
    if " fma " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no fused multiply-add")
    contracted = ops_library(*FMA)
    edges, graph = graph_of([0, 3, 31, 32, 33, 200, 256], 40)
    torch.manual_seed(0)
    x = torch.randn(40, width, dtype=torch.float64).to(dtype)
    weight = torch.randn(edges.shape[1], dtype=torch.float64).to(dtype)
    y = cuda_ops.spmm(x, weight, NONE, NONE, *graph, library=contracted)
    assert torch.equal(y, go.spmm(go.Graph(edges, (40, 7)), x, weight))
    if dtype.itemsize > 2:  # the products of 16-bit numbers are exact either way
        assert not torch.equal(y, cuda_ops.spmm(x, weight, NONE, NONE, *graph))


# ----------------------------------------------------------------------------- traffic

WIDTHS = [1, 2, 4, 7, 8, 9, 12, 16, 17, 31, 32, 33, 63, 64, 65, 128, 256, 257, 1000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_sectors_of_a_gather(ops, width, dtype):
    """A row of K elements, from a multiple of 32 bytes on, costs its sectors and no
    more: ceil(bytes / 32) an edge. Lanes that span less would ask for one again."""
    n_edges, size = 300, dtype.itemsize
    padded = -(-width * size // 32) * 32 // size
    torch.manual_seed(0)
    edges = torch.stack((torch.randperm(n_edges), torch.randint(0, 40, (n_edges,))))
    graph = go.Graph(edges, (n_edges, 40)).args()
    x = torch.ones(n_edges, padded).to(dtype)[:, :width]
    an_edge = -(-width * size // 32)
    moved = traffic(ops, run_spmm, "xy", x, NONE, NONE, NONE, *graph)
    assert moved["x"] == (n_edges * an_edge, 0)
    if width * size % 32 == 0:
        assert moved["y"] == (0, 40 * width * size // 32)
    u = torch.ones(40, padded).to(dtype)[:, :width]
    moved = traffic(ops, run_sddmm, "v", u, x, NONE, NONE, *graph)
    assert moved["v"] == (n_edges * an_edge, 0)


# ------------------------------------------------------------------------------ errors


def test_an_edge_beyond_x_is_reported(ops):
    """Kernels trust a checked graph; here one was not."""
    graph = (torch.tensor([0, 1]), torch.tensor([7]).int(), torch.empty(0).int(), 1, 9)
    with pytest.raises(
        Refused, match=r"^out of bounds: read of 16 bytes, \d+ bytes past"
    ):
        run_spmm(ops, torch.ones(5, 8), NONE, NONE, NONE, *graph)


def test_scratch_one_chunk_short_is_reported(ops, monkeypatch):
    _, graph = graph_of([600], 5)
    real = ops.dll.gnn_spmm_cuda_scratch
    monkeypatch.setattr(ops.dll, "gnn_spmm_cuda_scratch", lambda *a: real(*a) - 4)
    with pytest.raises(Refused, match="0 bytes past the end of scratch"):
        run_spmm(ops, torch.ones(5, 3), NONE, NONE, NONE, *graph)


def test_sizes_of_the_argument_structs(tmp_path):
    """The ctypes above have the layout of gnn.h."""
    fields = {
        "gnn_csr": cuda_ops.Csr,
        "gnn_spmm_args": cuda_ops.SpmmArgs,
        "gnn_sddmm_args": cuda_ops.SddmmArgs,
    }
    cuda_ops.check_layout(fields, tmp_path)
