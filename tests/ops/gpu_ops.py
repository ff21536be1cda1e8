"""The ops on a GPU for tests that speak CPU tensors: there, run, and back.

`spmm` and `sddmm` have the signatures of the dispatcher ops, so that a test can put
them where those are. Each call runs with and without the list of heavy rows and once
more with it: every result must have the same bits.
"""

import torch

from gnnoffload import _dispatch
from gnnoffload._graph_cuda import split_rows

FIRST_OF_GRAPH = {"spmm": 4, "sddmm": 4}  # rowptr's place among the arguments
COLPTR = 3  # after rowptr
REAL = {"spmm": _dispatch.spmm_op, "sddmm": _dispatch.sddmm_op}
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
    results = [REAL[name](*form).cpu() for form in (split, there, split)]
    for result in results[1:]:
        assert torch.equal(bits(result), bits(results[0])), f"other bits in {name}"
    return results[0]


def bits(x):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(integers[x.element_size()])


def spmm(*args):
    return on_gpu("spmm", args)


def sddmm(*args):
    return on_gpu("sddmm", args)
