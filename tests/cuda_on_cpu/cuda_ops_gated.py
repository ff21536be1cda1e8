"""Sums of gated messages of csrc/cuda, run by the executor.

The functions at the end have the signatures of the dispatcher ops; see cuda_ops.
"""

import ctypes

import cuda_ops
import torch
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


class GatedArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        *[(name, ctypes.c_bool) for name in ("softplus", "u_has_value")],
        ("n_features", INT64),
        *[(f"{name}_stride", INT64) for name in ("u", "v", "edge", "grad")],
        *[(name, POINTER) for name in ("u", "v", "edge", "scale", "y", "dy_du")],
        *[(name, POINTER) for name in ("grad", "d_v", "d_edge", "scratch")],
    )


def arguments(call, u, v, edge, scale, softplus, offset=0):
    args = GatedArgs(a=call.csr, dtype=DTYPES.index(v.dtype), softplus=softplus)
    args.n_features, args.u_has_value = v.shape[1] // 2, u.shape[1] == v.shape[1]
    args.u, args.u_stride = call.matrix("u", u, offset)
    args.v, args.v_stride = call.matrix("v", v, offset)
    if edge.numel():
        args.edge, args.edge_stride = call.matrix("edge", edge, offset)
    args.scale = call.optional("scale", scale)
    return args


def run_gated(library, u, v, edge, scale, softplus, wanted, *graph, split, offset=0):
    """y and dy_du, each as float64, one after the other"""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = arguments(call, u, v, edge, scale, softplus, offset)
        shape, at = (args.a.n_rows, args.n_features), offset * v.element_size()
        args.y, y = memory.output("y", shape, v.dtype, at)
        written = [y]
        if wanted:
            wide = accumulator(v.dtype)
            args.dy_du, dy_du = memory.output(
                "dy_du", (args.a.n_rows, u.shape[1]), wide, offset * wide.itemsize
            )
            written.append(dy_du)
        scratch_of(call, "gnn_gated_cuda_scratch", args)
        library.call("gnn_gated_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return torch.cat([out.double().flatten() for out in written])


def run_gated_vjp(
    library, grad, u, v, edge, scale, softplus, wants, *graph, split, offset=0
):
    """What is wanted of d_v and d_edge, as float64 one after the other"""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = arguments(call, u, v, edge, scale, softplus, offset)
        args.grad, args.grad_stride = call.matrix("grad", grad, offset)
        written = []
        rows = args.a.n_rows, args.a.n_edges
        for name, n_rows, want in zip(("d_v", "d_edge"), rows, wants, strict=True):
            if want:
                shape, at = (n_rows, v.shape[1]), offset * v.element_size()
                address, out = memory.output(name, shape, v.dtype, at)
                setattr(args, name, address)
                written.append(out)
        scratch_of(call, "gnn_gated_cuda_scratch", args)
        library.call("gnn_gated_vjp_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return torch.cat([out.double().flatten() for out in written])


# ---------------------------------------------------------------- as dispatcher ops


def gated(u, v, edge, scale, *graph_and_options):
    *graph, softplus, wanted = graph_and_options
    args = (u.detach(), v.detach(), edge.detach(), scale, softplus, wanted, *graph)
    both = in_all_orders(run_gated, *args)
    n, width = graph[6], v.shape[1] // 2
    y, dy_du = both[: n * width], both[n * width :]
    wide = accumulator(v.dtype)
    shape = n if wanted else 0, u.shape[1]
    return y.to(v.dtype).view(n, width), dy_du.to(wide).view(shape)


def gated_vjp(grad, u, v, edge, scale, *graph_and_options):
    *graph, softplus, wants_v, wants_edge = graph_and_options
    wants = wants_v, wants_edge
    tensors = (t.detach() for t in (grad, u, v, edge))
    both = in_all_orders(run_gated_vjp, *tensors, scale, softplus, wants, *graph)
    n_v = graph[6] if wants_v else 0
    n_edge = graph[1].shape[0] if wants_edge else 0
    d_v, d_edge = both.to(v.dtype).split([n_v * v.shape[1], n_edge * v.shape[1]])
    return d_v.view(n_v, v.shape[1]), d_edge.view(n_edge, v.shape[1])
