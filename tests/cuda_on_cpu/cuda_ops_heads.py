"""Products by head and softmax over edges of csrc/cuda, run by the executor.

The functions at the end have the signatures of the dispatcher ops; see cuda_ops.
"""

import ctypes

import cuda_ops
from cuda_ops import (
    DTYPES,
    ENUM,
    INT64,
    POINTER,
    Call,
    Csr,
    accumulator,
    in_all_orders,
    scratch_of,
)


class HeadsArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        *[(name, ENUM) for name in ("dtype", "edge_dtype")],
        *[(name, INT64) for name in ("n_heads", "n_channels")],
        *[(f"{name}_stride", INT64) for name in "xuv"],
        ("scale", ctypes.c_double),
        *[(name, POINTER) for name in ("x", "w", "y", "u", "v", "z", "scratch")],
    )


class SoftmaxArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        ("n_heads", INT64),
        *[(name, POINTER) for name in ("scores", "alpha", "grad", "d_scores")],
        ("scratch", POINTER),
    )


def head_arguments(call, x, edge_dtype, scale):
    shape = {"n_heads": x.shape[1], "n_channels": x.shape[2], "scale": scale}
    kinds = DTYPES.index(x.dtype), DTYPES.index(edge_dtype)
    return HeadsArgs(a=call.csr, dtype=kinds[0], edge_dtype=kinds[1], **shape)


def run_spmm(library, x, w, scale, *graph, split, offset=0):
    """x [M, H, C], w [E, H] -> [N, H, C]"""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = head_arguments(call, x, w.dtype, scale)
        args.x, args.x_stride = call.matrix("x", x.flatten(1), offset)
        args.w = call.optional("w", w)
        scratch_of(call, "gnn_heads_spmm_cuda_scratch", args)
        shape, at = (args.a.n_rows, *x.shape[1:]), offset * x.element_size()
        args.y, y = memory.output("y", shape, x.dtype, at)
        library.call("gnn_heads_spmm_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return y.clone()


def run_sddmm(library, u, v, scale, edge_dtype, *graph, split, offset=0):
    """u [N, H, C], v [M, H, C] -> [E, H]"""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = head_arguments(call, u, edge_dtype, scale)
        args.u, args.u_stride = call.matrix("u", u.flatten(1), offset)
        args.v, args.v_stride = call.matrix("v", v.flatten(1), offset)
        args.z, z = memory.output("z", (args.a.n_edges, u.shape[1]), edge_dtype)
        library.call("gnn_heads_sddmm_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return z.clone()


def run_softmax(library, scores, *graph, split):
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        dtype, n_heads = DTYPES.index(scores.dtype), scores.shape[1]
        args = SoftmaxArgs(a=call.csr, dtype=dtype, n_heads=n_heads)
        args.scores = call.optional("scores", scores)
        args.alpha, alpha = memory.output("alpha", tuple(scores.shape), scores.dtype)
        scratch_of(call, "gnn_edge_softmax_cuda_scratch", args)
        library.call("gnn_edge_softmax_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return alpha.clone()


def run_softmax_vjp(library, alpha, grad, *graph, split):
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        dtype, n_heads = DTYPES.index(alpha.dtype), alpha.shape[1]
        args = SoftmaxArgs(a=call.csr, dtype=dtype, n_heads=n_heads)
        args.alpha = call.optional("alpha", alpha)
        args.grad = call.optional("grad", grad)
        args.d_scores, ds = memory.output("d_scores", tuple(alpha.shape), alpha.dtype)
        scratch_of(call, "gnn_edge_softmax_cuda_scratch", args)
        stream = ctypes.c_uint64(0)
        library.call("gnn_edge_softmax_vjp_cuda", ctypes.byref(args), stream)
        return ds.clone()


# ---------------------------------------------------------------- as dispatcher ops


def edge_softmax(scores, *graph):
    return in_all_orders(run_softmax, scores, *graph)


def edge_softmax_vjp(grad, alpha, *graph):
    return in_all_orders(run_softmax_vjp, alpha, grad.contiguous(), *graph)


def heads_spmm(x, weight, *graph):
    x = x.unflatten(1, (weight.shape[1], -1))
    return in_all_orders(run_spmm, x, weight, 1.0, *graph).flatten(1)


def heads_sddmm(a, b, *graph_and_more):
    *graph, n_heads, wide = graph_and_more
    a, b = (t.unflatten(1, (n_heads, -1)) for t in (a, b))
    dtype = accumulator(a.dtype) if wide else a.dtype
    return in_all_orders(run_sddmm, a, b, 1.0, dtype, *graph)
