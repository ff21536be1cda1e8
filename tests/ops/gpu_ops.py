"""The ops on a GPU for tests that speak CPU tensors: there, run, and back.

Each name in OPS is a function with the signature of the dispatcher op, to be put where
that is. Each call runs with and without the list of heavy rows and once
more with it: every result must have the same bits.
"""

import torch

from gnnoffload import (
    _dispatch,
    _dispatch_gated,
    _dispatch_heads,
    _dispatch_reduce,
    _dispatch_softmax_aggregate,
)
from gnnoffload._graph_cuda import split_rows

OPS = {  # name: the op, and rowptr's place among its arguments
    "spmm": (_dispatch.spmm_op, 4),
    "sddmm": (_dispatch.sddmm_op, 4),
    "gated": (_dispatch_gated.gated_op, 4),
    "gated_vjp": (_dispatch_gated.gated_vjp_op, 5),
    "edge_softmax": (_dispatch_heads.edge_softmax_op, 1),
    "edge_softmax_vjp": (_dispatch_heads.edge_softmax_vjp_op, 2),
    "heads_spmm": (_dispatch_heads.heads_spmm_op, 2),
    "heads_sddmm": (_dispatch_heads.heads_sddmm_op, 2),
    "aggregate": (_dispatch_reduce.aggregate_op, 2),
    "aggregate_vjp": (_dispatch_reduce.aggregate_vjp_op, 14),
    "softmax_aggregate": (_dispatch_softmax_aggregate.softmax_op, 3),
    "softmax_aggregate_vjp": (_dispatch_softmax_aggregate.softmax_vjp_op, 6),
}
FIRST_OF_GRAPH = {name: place for name, (_, place) in OPS.items()}
REAL = {name: op for name, (op, _) in OPS.items()}
OF_ITEMS = {"softmax_aggregate_vjp"}  # a sum over work items, which the list decides
COLPTR = 3  # after rowptr
DEVICE = "cuda"
n_calls = 0  # so that a test can see that it came here


def on_gpu(name, args):
    global n_calls
    n_calls += 1
    there = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in args]
    split = list(there)
    for place in (FIRST_OF_GRAPH[name], FIRST_OF_GRAPH[name] + COLPTR):
        if split[place].numel() > 0:
            split[place] = split_rows(split[place])
    forms = (split, split if name in OF_ITEMS else there, split)
    results = [on_cpu(REAL[name](*form)) for form in forms]
    for result in results[1:]:
        for one, first in zip(result, results[0], strict=True):
            assert torch.equal(bits(one), bits(first)), f"other bits in {name}"
    return results[0] if len(results[0]) > 1 else results[0][0]


def on_cpu(result):
    return tuple(y.cpu() for y in (result if isinstance(result, tuple) else [result]))


def bits(x):
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(integers[x.element_size()])


def __getattr__(name):
    """The op of that name, there and back."""
    if name not in OPS:
        raise AttributeError(name)
    return lambda *args: on_gpu(name, args)
