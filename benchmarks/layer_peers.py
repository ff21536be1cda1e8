"""DGL's operators in the place of PyG's layers, with a PyG layer's own parameters.

DGL's last CPU wheel is 2.1.0, made for torch 2.0 to 2.2: under a newer torch its
GraphBolt library cannot load, its message-passing operators can. Put it beside the
other packages without its dependencies and say where:

    pip install --no-deps --target DIR dgl==2.1.0
    make bench OP=attention ARGS="--dgl DIR"

`dgl_layers(DIR)` gives {layer name: maker}; a maker takes (PyG layer, edge_index, n)
and gives a function of x, its graph built once.
"""

import importlib.machinery
import math
import os
import sys
import types

from torch.nn.functional import leaky_relu


class _Stub(types.ModuleType):
    """A module with any name in it: for imports whose content is never used."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import_dgl(folder):
    sys.path.append(str(folder))
    for name in ("pandas", "dgl.graphbolt", "setuptools.extern"):
        if name not in sys.modules:
            stub = _Stub(name)
            stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = stub
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl

    return dgl


def dgl_layers(folder):
    dgl = _import_dgl(folder)
    ops = dgl.ops

    def graph_of(edge_index, n, loops):
        source, destination = edge_index
        graph = dgl.graph((source, destination), num_nodes=n).int()
        if loops:
            graph = dgl.add_self_loop(dgl.remove_self_loop(graph))
        graph.create_formats_()
        return graph

    def gat(conv, edge_index, n):
        graph = graph_of(edge_index, n, conv.add_self_loops)

        def forward(x):
            h = conv.lin(x).view(n, conv.heads, conv.out_channels)
            source = (h * conv.att_src).sum(-1, keepdim=True)
            destination = (h * conv.att_dst).sum(-1, keepdim=True)
            score = ops.u_add_v(graph, source, destination)
            score = leaky_relu(score, conv.negative_slope)
            y = ops.u_mul_e_sum(graph, h, ops.edge_softmax(graph, score))
            return y.flatten(1) + conv.bias

        return forward

    def gatv2(conv, edge_index, n):
        graph = graph_of(edge_index, n, conv.add_self_loops)

        def forward(x):
            shape = n, conv.heads, conv.out_channels
            left, right = conv.lin_l(x).view(shape), conv.lin_r(x).view(shape)
            h = leaky_relu(ops.u_add_v(graph, left, right), conv.negative_slope)
            score = (h * conv.att).sum(-1, keepdim=True)
            y = ops.u_mul_e_sum(graph, left, ops.edge_softmax(graph, score))
            return y.flatten(1) + conv.bias

        return forward

    def transformer(conv, edge_index, n):
        graph = graph_of(edge_index, n, False)

        def forward(x):
            shape = n, conv.heads, conv.out_channels
            query, key, value = (
                linear(x).view(shape)
                for linear in (conv.lin_query, conv.lin_key, conv.lin_value)
            )
            score = ops.u_dot_v(graph, key, query) / math.sqrt(conv.out_channels)
            y = ops.u_mul_e_sum(graph, value, ops.edge_softmax(graph, score))
            return y.flatten(1) + conv.lin_skip(x)

        return forward

    def maximum(conv, edge_index, n):
        graph = graph_of(edge_index, n, False)
        is_empty = (graph.in_degrees() == 0)[:, None]
        return lambda x: ops.copy_u_max(graph, x).masked_fill(is_empty, 0.0)

    def sage_max(conv, edge_index, n):
        aggregate = maximum(conv, edge_index, n)
        return lambda x: conv.lin_l(aggregate(x)) + conv.lin_r(x)

    return {
        "GAT": gat,
        "GATv2": gatv2,
        "Transformer": transformer,
        "max": maximum,
        "SAGE max": sage_max,
    }


def version(folder):
    try:
        return _import_dgl(folder).__version__
    except (ImportError, OSError, RuntimeError):
        return None
