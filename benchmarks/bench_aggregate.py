"""aggregate: layers that reduce by maximum, by many reductions, by softmax, by a gate;
"max" is the maximum alone, without a Linear.

    make bench OP=aggregate                     the whole matrix
    make bench OP=aggregate ARGS="--quick"      small graphs only
    make bench OP=aggregate ARGS="--dgl DIR"    with DGL's operators (layer_peers.py)

layer_bench.py says how. The last lines say which bars hold.
"""

import sys

import torch
from torch.nn import Linear, ReLU, Sequential

from benchmarks.layer_bench import Layer, main


def pna(nn, features, _):
    return nn.PNAConv(
        features,
        features,
        aggregators=["mean", "min", "max", "std"],
        scalers=["identity", "amplification", "attenuation"],
        deg=torch.tensor([0, 1, 4, 12, 30, 12, 4, 1]),
    )


def edge_conv(nn, features, _):
    return nn.EdgeConv(
        Sequential(Linear(2 * features, features), ReLU(), Linear(features, features))
    )


LAYERS = {
    "max": Layer(lambda nn, f, h: nn.SimpleConv(aggr="max"), dgl_bar=2),
    "SAGE max": Layer(lambda nn, f, h: nn.SAGEConv(f, f, aggr="max"), dgl_bar=2),
    "PNA": Layer(pna),
    "GEN": Layer(lambda nn, f, h: nn.GENConv(f, f, aggr="softmax", learn_t=True)),
    "ResGated": Layer(lambda nn, f, h: nn.ResGatedGraphConv(f, f)),
    # of millions of maxima some are near ties: another rounding picks another edge,
    # and the gradient goes there
    "EdgeConv": Layer(edge_conv, bar=3, tolerance=1e-3),
}
# (graph, F, H, dtype, with build)
MATRIX = [
    *[(name, ("mesh6", 64, 1, "float32", False)) for name in LAYERS],
    *[(name, ("mesh5", 64, 1, "bfloat16", False)) for name in LAYERS],
    *[(name, ("mesh5", 33, 1, "float32", False)) for name in LAYERS],
    *[(name, ("small", 64, 1, "float32", True)) for name in LAYERS],
    *[(name, ("hub", 32, 1, "float32", False)) for name in LAYERS],
]
QUICK = [
    *[(name, ("mesh5", 64, 1, "float32", False)) for name in LAYERS],
    *[(name, ("small", 21, 1, "float32", True)) for name in LAYERS],
]

if __name__ == "__main__":
    main("aggregate: layers against PyG and DGL", LAYERS, MATRIX, QUICK, sys.argv[1:])
