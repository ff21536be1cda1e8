"""The ops of csrc/cuda, run by the executor on CPU tensors.

`spmm` and `sddmm` have the signatures of the dispatcher ops, so that a test can put
them where those are. Each call runs in all four lane orders, with and without a list of
heavy rows: every result must have the same bits.
"""

import ctypes
import sys
from functools import cache
from unittest import mock

import torch
from cuda_executor import C_FLAGS, CC, ROOT, Library, Memory, build, run

CHUNK = 256  # GNN_CUDA_CHUNK
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # as gnn_dtype
EID_DTYPES = {torch.int32: 4, torch.int64: 5}
POINTER, INT64, ENUM = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Csr(ctypes.Structure):
    _fields_ = (
        *[(name, INT64) for name in ("n_rows", "n_cols", "n_edges")],
        *[(name, POINTER) for name in ("rowptr", "col", "eid")],
        ("eid_dtype", ENUM),
        ("split", POINTER),
        ("n_split", INT64),
    )


class SpmmArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        *[(name, INT64) for name in ("n_features", "x_stride")],
        *[(name, POINTER) for name in ("x", "weight", "row_scale", "col_scale")],
        *[(name, POINTER) for name in ("scratch", "y")],
    )


class SddmmArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        *[(name, INT64) for name in ("n_features", "u_stride", "v_stride")],
        *[(name, POINTER) for name in ("u", "v", "row_scale", "col_scale", "z")],
    )


@cache
def ops_library(*flags, only="*"):
    """All ops; `only` those of files that begin so, where flags compile them anew."""
    found = ROOT.glob(f"csrc/cuda/{only}*.cu" if only != "*" else "csrc/cuda/*.cu")
    sources = sorted(
        {"csrc/cuda/spmm_cuda.cu", *(str(p.relative_to(ROOT)) for p in found)}
    )
    name = "ops" if only == "*" else f"ops_{only}"
    library = Library(build(name, sources, flags=flags))
    library.dll.gnn_spmm_cuda_scratch.restype = INT64
    return library


def heavy_chunks(rowptr):
    """[n, 2] row and chunk number of each chunk of the rows that have more than one."""
    degrees = rowptr.diff().tolist()
    chunks = [
        (row, chunk)
        for row, degree in enumerate(degrees)
        if degree > CHUNK
        for chunk in range(-(-degree // CHUNK))
    ]
    return torch.tensor(chunks, dtype=torch.int64).view(-1, 2)


def rows_in_place(x):
    """x, or a copy of it, with neighbouring elements in each row; and its stride."""
    x = x.detach()
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous()
    return x, x.stride(0) if x.shape[0] > 1 else x.shape[1]


def accumulator(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def scratch_of(call, function, args):
    """Places what the op's own function says it needs."""
    scratch_bytes = getattr(call.library.dll, function)
    scratch_bytes.restype = INT64
    n_bytes = scratch_bytes(ctypes.byref(args))
    args.scratch, _ = call.memory.output("scratch", (n_bytes,), torch.uint8)


class Call:
    """One launch: its memory, and what all ops have among their arguments."""

    def __init__(self, library, memory, graph, split):
        rowptr, col, eid, *_, n_rows, n_cols = graph
        self.library, self.memory = library, memory
        self.csr = Csr(n_rows, n_cols, col.numel())
        self.csr.rowptr = memory.input("rowptr", rowptr)
        self.csr.col = memory.input("col", col)
        self.csr.eid = self.optional("eid", eid)
        self.csr.eid_dtype = EID_DTYPES[eid.dtype]
        chunks = heavy_chunks(rowptr) if split else torch.empty(0, 2)
        self.csr.n_split = len(chunks)
        self.csr.split = self.optional("split", chunks)

    def optional(self, name, tensor):
        if tensor.numel() == 0:
            return None
        return self.memory.input(name, tensor.detach().contiguous())

    def matrix(self, name, x, offset=0):
        """(address, stride) of x, `offset` elements past a round address"""
        x, stride = rows_in_place(x)
        return self.memory.input(name, x, offset * x.element_size()), stride


def run_spmm(
    library, x, weight, row_scale, col_scale, *graph, split=True, offsets=(0, 0)
):
    with Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = SpmmArgs(a=call.csr, dtype=DTYPES.index(x.dtype), n_features=x.shape[1])
        args.x, args.x_stride = call.matrix("x", x, offsets[0])
        args.weight = call.optional("weight", weight)
        args.row_scale = call.optional("row_scale", row_scale)
        args.col_scale = call.optional("col_scale", col_scale)
        n_bytes = library.dll.gnn_spmm_cuda_scratch(
            ctypes.byref(args.a), INT64(args.n_features), args.dtype
        )
        args.scratch, _ = memory.output("scratch", (n_bytes,), torch.uint8)
        args.y, y = memory.output(
            "y",
            (args.a.n_rows, args.n_features),
            x.dtype,
            offsets[1] * x.element_size(),
        )
        library.call("gnn_spmm_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return y.clone()


def run_sddmm(library, a, b, row_scale, col_scale, *graph, split=True, offsets=(0, 0)):
    with Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = SddmmArgs(a=call.csr, dtype=DTYPES.index(a.dtype), n_features=a.shape[1])
        args.u, args.u_stride = call.matrix("u", a, offsets[0])
        args.v, args.v_stride = call.matrix("v", b, offsets[1])
        args.row_scale = call.optional("row_scale", row_scale)
        args.col_scale = call.optional("col_scale", col_scale)
        args.z, z = memory.output("z", (args.a.n_edges,), a.dtype)
        library.call("gnn_sddmm_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return z.clone()


def same_bits(one, two):
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    integers = sizes[one.element_size()]
    return torch.equal(one.view(integers), two.view(integers))


n_calls = 0  # of ops, so that a test can see that it came here


def in_all_orders(run, *args, library=None, **kwargs):
    global n_calls
    n_calls += 1
    library, seed = library or ops_library(), n_calls
    results = []
    for i, order in enumerate(library.orders):
        library.set_order(order, seed)
        results.append(run(library, *args, split=i % 2 == 0, **kwargs))
    library.reset()
    for order, result in zip(library.orders, results, strict=True):
        assert same_bits(result, results[0]), f"other bits in order {order}"
    return results[0]


def spmm(*args, **kwargs):
    return in_all_orders(run_spmm, *args, **kwargs)


def sddmm(*args, **kwargs):
    return in_all_orders(run_sddmm, *args, **kwargs)


# ----------------------------------------------------------------------- what tests ask


def traffic(library, run_op, names, *args, module=None, **kwargs):
    """{name: (sectors read, sectors written)} of one call by a function of module."""
    counted = {}

    class Counting(Memory):
        def _place(self, name, *rest):
            address, held = super()._place(name, *rest)
            self.places = {**getattr(self, "places", {}), name: address}
            return address, held

        def __exit__(self, *error):
            for name in names:
                place = self.places[name]
                counted[name] = tuple(
                    library.traffic(place, written)[0] for written in (False, True)
                )
            super().__exit__(*error)

    library.count_traffic(True)
    module = module or sys.modules[__name__]
    with mock.patch.object(module, "Memory", Counting):
        run_op(library, *args, **kwargs)
    return counted


def check_layout(structs, folder):
    """The ctypes of {name: structure} have the layout of gnn.h, or this raises."""
    checks = [
        f"_Static_assert(offsetof({name}, {field}) == {getattr(kind, field).offset}"
        f' && sizeof({name}) == {ctypes.sizeof(kind)}, "{name}.{field}");'
        for name, kind in structs.items()
        for field, _ in kind._fields_
    ]
    checks.append(f'_Static_assert(GNN_CUDA_CHUNK == {CHUNK}, "chunk");')
    source = folder / "layout.c"
    source.write_text('#include "gnn.h"\n' + "\n".join(checks))
    run([CC, *C_FLAGS, "-Icsrc", "-c", source, "-o", folder / "layout.o"])
