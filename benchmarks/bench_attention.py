"""attention: GAT, GATv2 and graph transformer layers against PyG and DGL's operators.

    make bench OP=attention                     the whole matrix
    make bench OP=attention ARGS="--quick"      small graphs only
    make bench OP=attention ARGS="--dgl DIR"    with DGL's operators (layer_peers.py)

layer_bench.py says how. The last lines say which bars hold.
"""

import sys

from benchmarks.layer_bench import EDGE_DIM, Layer, main

# Of a million scores one may lie within rounding of 0, where leaky_relu has its bend:
# in another rounding its edge has another gradient.
BEND = 1e-3

LAYERS = {
    "GAT": Layer(lambda nn, f, h: nn.GATConv(f, f // h, h), dgl_bar=3, tolerance=BEND),
    "GATv2": Layer(lambda nn, f, h: nn.GATv2Conv(f, f // h, h), dgl_bar=3),
    "Transformer": Layer(lambda nn, f, h: nn.TransformerConv(f, f // h, h), dgl_bar=3),
    "GAT e": Layer(
        lambda nn, f, h: nn.GATConv(f, f // h, h, edge_dim=EDGE_DIM),
        edge_dim=EDGE_DIM,
        tolerance=BEND,
    ),
    "GATv2 e": Layer(
        lambda nn, f, h: nn.GATv2Conv(f, f // h, h, edge_dim=EDGE_DIM),
        edge_dim=EDGE_DIM,
    ),
    "Transformer e": Layer(
        lambda nn, f, h: nn.TransformerConv(f, f // h, h, edge_dim=EDGE_DIM),
        edge_dim=EDGE_DIM,
    ),
}
PLAIN = ("GAT", "GATv2", "Transformer")
# (graph, F, H, dtype, with build)
MATRIX = [
    *[(name, ("mesh6", 64, 4, "float32", False)) for name in LAYERS],
    *[(name, ("mesh5", 128, 8, "float32", False)) for name in LAYERS],
    *[(name, ("mesh5", 64, 4, "bfloat16", False)) for name in LAYERS],
    *[(name, ("mesh5", 21, 3, "float32", False)) for name in PLAIN],
    *[(name, ("mesh5", 33, 1, "float32", False)) for name in PLAIN],
    *[(name, ("small", 64, 4, "float32", True)) for name in PLAIN],
    *[(name, ("hub", 32, 4, "float32", False)) for name in PLAIN],
]
QUICK = [
    *[(name, ("mesh5", 64, 4, "float32", False)) for name in LAYERS],
    *[(name, ("small", 21, 3, "float32", True)) for name in PLAIN],
]

if __name__ == "__main__":
    main("attention: layers against PyG and DGL", LAYERS, MATRIX, QUICK, sys.argv[1:])
