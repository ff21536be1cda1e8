"""Aggregation and softmax aggregation of csrc/cuda, run by the executor.

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

NAMES = ["sum", "mean", "min", "max", "var", "std"]  # as gnn_reduce
ARG_DTYPES = {torch.int8: 6, torch.int16: 7, torch.int32: 4}  # as gnn_dtype


class AggregateArgs(ctypes.Structure):
    _fields_ = (
        *[(name, Csr) for name in ("a", "back")],
        *[(name, ENUM) for name in ("dtype", "arg_dtype")],
        ("which", ctypes.c_uint),
        ("n_features", INT64),
        *[(f"{name}_stride", INT64) for name in ("x", "edge")],
        *[(name, POINTER) for name in ("x", "edge")],
        ("y", POINTER * 6),
        *[(name, POINTER) for name in ("arg_min", "arg_max", "mean")],
        ("grad", POINTER * 6),
        ("grad_stride", INT64 * 6),
        *[(name, POINTER) for name in ("d_x", "d_edge", "scratch")],
    )


def aggregate_arguments(call, names, x, edge, arg_dtype, offset=0):
    args = AggregateArgs(a=call.csr, dtype=DTYPES.index(x.dtype))
    args.which = sum(1 << NAMES.index(name) for name in names)
    args.arg_dtype, args.n_features = ARG_DTYPES[arg_dtype or torch.int8], x.shape[1]
    args.x, args.x_stride = call.matrix("x", x, offset)
    if edge.numel():
        args.edge, args.edge_stride = call.matrix("edge", edge, offset)
    return args


def run_aggregate(
    library, names, x, edge, arg_dtype, wants_mean, *graph, split, offset=0
):
    """Everything that is written, as bytes one after the other: the statistics in
    gnn_reduce's order, the args, the mean."""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = aggregate_arguments(call, names, x, edge, arg_dtype, offset)
        shape, written = (args.a.n_rows, x.shape[1]), []

        def output(name, dtype):
            at, tensor = memory.output(name, shape, dtype, offset * dtype.itemsize)
            written.append(tensor)
            return at

        for i, name in enumerate(NAMES):
            if name in names:
                args.y[i] = output(name, x.dtype)
        if "min" in names and arg_dtype:
            args.arg_min = output("arg_min", arg_dtype)
        if "max" in names and arg_dtype:
            args.arg_max = output("arg_max", arg_dtype)
        if wants_mean:
            args.mean = output("mean_acc", accumulator(x.dtype))
        scratch_of(call, "gnn_aggregate_cuda_scratch", args)
        library.call("gnn_aggregate_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return torch.cat([out.flatten().view(torch.uint8) for out in written])


def run_aggregate_vjp(
    library, names, x, edge, saved, grads, *graph, split, wants=(True, True)
):
    """Gradients of x and edge one after the other."""
    rowptr, col, eid, colptr, row, ceid, n_rows, n_cols = graph
    back = colptr, row, ceid, rowptr, col, eid, n_cols, n_rows
    arg_dtype = saved.get("arg_max", saved.get("arg_min", torch.empty(0).char())).dtype
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = aggregate_arguments(call, names, x, edge, arg_dtype)
        args.back = Call(library, memory, back, split).csr
        for i, name in enumerate(NAMES):
            if name in names and name in grads:
                args.grad[i], args.grad_stride[i] = call.matrix(
                    f"g_{name}", grads[name]
                )
            if name in saved:
                args.y[i] = memory.input(name, saved[name])
        for name, field in (("arg_min",) * 2, ("arg_max",) * 2, ("mean_acc", "mean")):
            if name in saved:
                setattr(args, field, memory.input(name, saved[name]))
        results = []
        for name, like, want in zip(("d_x", "d_edge"), (x, edge), wants, strict=True):
            if want and like.dim() == 2:  # else there is no edge
                at, out = memory.output(name, tuple(like.shape), x.dtype)
                setattr(args, name, at)
                results.append(out)
        scratch_of(call, "gnn_aggregate_vjp_cuda_scratch", args)
        library.call("gnn_aggregate_vjp_cuda", ctypes.byref(args), ctypes.c_uint64(0))
        return torch.cat([out.flatten() for out in results])


class SoftmaxAggregateArgs(ctypes.Structure):
    _fields_ = (
        ("a", Csr),
        ("dtype", ENUM),
        *[(name, ctypes.c_bool) for name in ("relu", "semi_grad")],
        ("eps", ctypes.c_double),
        ("n_features", INT64),
        *[(f"{name}_stride", INT64) for name in ("x", "edge", "grad")],
        *[(name, POINTER) for name in ("x", "edge", "t", "y", "out_acc", "lse")],
        *[(name, POINTER) for name in ("grad", "d_x", "d_edge", "d_t", "scratch")],
    )


def softmax_arguments(call, x, edge, t, relu, eps, offset=0):
    args = SoftmaxAggregateArgs(
        a=call.csr, dtype=DTYPES.index(x.dtype), relu=relu, eps=eps
    )
    args.n_features = x.shape[1]
    args.x, args.x_stride = call.matrix("x", x, offset)
    if edge.numel():
        args.edge, args.edge_stride = call.matrix("edge", edge, offset)
    args.t = call.memory.input("t", t.contiguous())
    return args


def run_softmax_aggregate(library, x, edge, t, relu, *graph, split, offset=0, eps=0.25):
    """y, out_acc and lse, each as float64, one after the other"""
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, graph, split)
        args = softmax_arguments(call, x, edge, t, relu, eps, offset)
        shape, outputs = (args.a.n_rows, x.shape[1]), []
        for name in ("y", "out_acc", "lse"):
            dtype = x.dtype if name == "y" else t.dtype
            at, out = memory.output(name, shape, dtype, offset * dtype.itemsize)
            setattr(args, name, at)
            outputs.append(out)
        scratch_of(call, "gnn_softmax_aggregate_cuda_scratch", args)
        stream = ctypes.c_uint64(0)
        library.call("gnn_softmax_aggregate_cuda", ctypes.byref(args), stream)
        return torch.stack([out.double() for out in outputs])


def run_softmax_aggregate_vjp(
    library, x, edge, t, relu, out, lse, grad, semi, wants, *graph, split, eps=0.25
):
    """What is wanted of the gradients of x, edge and t, as float64 in a row"""
    rowptr, col, eid, colptr, row, ceid, n_rows, n_cols = graph
    back = colptr, row, ceid, rowptr, col, eid, n_cols, n_rows
    with cuda_ops.Memory(library) as memory:
        call = Call(library, memory, back, split)
        args = softmax_arguments(call, x, edge, t, relu, eps)
        args.semi_grad = semi
        args.grad, args.grad_stride = call.matrix("grad", grad)
        args.out_acc, args.lse = memory.input("out_acc", out), memory.input("lse", lse)
        results = []
        for name, like in (("d_x", x), ("d_edge", edge), ("d_t", t)):
            if name in wants and (like.dim() == 2 or name == "d_t"):
                at, tensor = memory.output(name, tuple(like.shape), like.dtype)
                setattr(args, name, at)
                results.append(tensor)
        scratch_of(call, "gnn_softmax_aggregate_vjp_cuda_scratch", args)
        stream = ctypes.c_uint64(0)
        library.call("gnn_softmax_aggregate_vjp_cuda", ctypes.byref(args), stream)
        return torch.cat([tensor.double().flatten() for tensor in results])


# ---------------------------------------------------------------- as dispatcher ops


def aggregate(x, edge, *graph_and_more):
    *graph, which, arg_bits, wants_mean = graph_and_more
    names = [name for i, name in enumerate(NAMES) if which & 1 << i]
    arg_dtype = {0: None, 8: torch.int8, 16: torch.int16, 32: torch.int32}[arg_bits]
    kinds = {name: x.dtype for name in names}
    kinds |= {f"arg_{name}": arg_dtype for name in ("min", "max") if name in names}
    kinds |= {"mean_acc": accumulator(x.dtype)} if wants_mean else {}
    args = (names, x, edge, arg_dtype, wants_mean, *graph)
    packed = in_all_orders(run_aggregate, *args)
    found = {}
    for name, dtype in kinds.items():
        if dtype:
            size = graph[6] * x.shape[1] * dtype.itemsize
            part, packed = packed[:size].clone(), packed[size:]
            found[name] = part.view(dtype).view(graph[6], x.shape[1])
    return tuple(
        found.get(name, x.new_empty(0, x.shape[1], dtype=kinds.get(name)))
        for name in (*NAMES, "arg_min", "arg_max", "mean_acc")
    )


def aggregate_vjp(x, edge, *more):
    grads, (low, high, std, arg_min, arg_max, mean) = more[:6], more[6:12]
    graph, which, wants = more[12:20], more[20], more[21:]
    names = [name for i, name in enumerate(NAMES) if which & 1 << i]
    saved = {"min": low, "max": high, "std": std}
    saved |= {"arg_min": arg_min, "arg_max": arg_max, "mean_acc": mean}
    saved = {name: value for name, value in saved.items() if value.numel()}
    given = dict(zip(NAMES, grads, strict=True))
    given = {name: grad for name, grad in given.items() if grad.numel()}
    args = (names, x, edge, saved, given, *graph)
    packed = in_all_orders(run_aggregate_vjp, *args, wants=wants)
    n = x.numel() if wants[0] else 0
    d_x = packed[:n].view(-1, x.shape[1]) if n else x[:0]
    return d_x, packed[n:].view(-1, x.shape[1]) if wants[1] else x[:0]


def softmax_aggregate(x, edge, t, *graph_and_more):
    *graph, relu, eps, _, saves = graph_and_more
    args = (x, edge, t, relu, *graph)
    y, out, lse = in_all_orders(run_softmax_aggregate, *args, eps=eps)
    wide, none = accumulator(x.dtype), x.new_empty(0, x.shape[1])
    wider = saves and wide is not x.dtype
    return (
        y.to(x.dtype),
        out.to(wide) if wider else none.to(wide),
        lse.to(wide) if saves else none.to(wide),
    )


def softmax_aggregate_vjp(x, edge, t, grad, out, lse, *graph_and_more):
    *back, relu, eps, semi, wants_x, wants_edge, wants_t = graph_and_more
    graph = (*back[3:6], *back[:3], back[7], back[6])
    wanted = {"d_x": wants_x, "d_edge": wants_edge, "d_t": wants_t}
    wants = [name for name, is_wanted in wanted.items() if is_wanted]

    def run(library, *args, split):  # the gradient of t is that of one list of items
        return run_softmax_aggregate_vjp(
            library, *args, split=split or wants_t, eps=eps
        )

    args = (x, edge, t, relu, out, lse, grad, semi, wants, *graph)
    packed, results = in_all_orders(run, *args), []
    for name, like in (("d_x", x), ("d_edge", edge), ("d_t", t)):
        n = like.numel() if wanted[name] else 0
        part, packed = packed[:n].to(like.dtype), packed[n:]
        results.append(part.view(like.shape) if wanted[name] else like[:0])
    return tuple(results)
