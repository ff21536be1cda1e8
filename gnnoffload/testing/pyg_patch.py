"""pytest plugin: PyG's own test suite, run against our layers.

    pytest -p gnnoffload.testing.pyg_patch test/nn/conv/test_gcn_conv.py

Tests bind names when they are imported (`from torch_geometric.nn import GCNConv`), so
the classes are rebound before collection, wherever torch_geometric keeps them. The run
ends with the calls that the fast path served and those it did not, by reason. Reasons
of BY_DESIGN are expected; with GNNOFFLOAD_PATCH=strict any other one fails the run.
"""

import os
import sys

import torch_geometric.nn.models  # noqa: F401  (it keeps the classes too)

import gnnoffload.nn
from gnnoffload import _fallback
from gnnoffload.nn import PYG_LAYERS

# What the fast paths leave to PyG on purpose: beginnings of reasons.
BY_DESIGN = (
    "a method of the instance",
    "aggr=",
    "cached=True with a SparseTensor",
    "decomposed_layers=",
    "device ",
    "dtype ",
    "attention weights under torch.compile",
    "dropout under torch.compile",
    "edge_attr is not a matrix",
    "edge_attr without edge_dim",
    "edge_update() overridden",
    "edge_weight with aggr=",
    "explain",
    "fewer sources than destinations",
    "forward-mode differentiation",
    "flow=target_to_source with",
    "lin has hooks",
    "message passing hooks",
    "message() overridden",
    "get_attention() overridden",
    "no features of destinations",
    "propagate() overridden",
    "node_dim=",
    "dropout without weights",
    "sparse CSC",
    "sparse matrix",
    "self_loop with two sets",
    "SparseTensor with combine_root",
    "SparseTensor whose values",
    "torch.func transform",
    "torch.jit",
    "torch.onnx",
    "training under torch.compile",
    "x has 3 dimensions",
    "x is ",
)


def patch():
    """Puts our class wherever a torch_geometric module holds PyG's."""
    ours = [getattr(gnnoffload.nn, name) for name in PYG_LAYERS]
    pairs = {layer.__bases__[0]: layer for layer in ours}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "torch_geometric" and module is not None:
            for attribute, value in list(vars(module).items()):
                if isinstance(value, type) and value in pairs:
                    setattr(module, attribute, pairs[value])


def unexpected():
    """[(layer, reason)] of fallbacks that are not by design."""
    return [
        (layer, reason)
        for layer, row in _fallback.counts().items()
        for reason in row["fallback"]
        if not reason.startswith(BY_DESIGN)
    ]


def pytest_sessionfinish(session, exitstatus):
    strict = os.environ.get("GNNOFFLOAD_PATCH") == "strict"
    if strict and unexpected() and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    write = terminalreporter.write_line
    terminalreporter.section("gnnoffload: fast path and fallbacks")
    write(_fallback.table(BY_DESIGN) or "no calls")
    for layer, reason in unexpected():
        write(f"not by design: {layer}: {reason}")


patch()
