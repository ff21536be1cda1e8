"""Host cost of one layer call on a graph too small to matter, ours beside PyG's.

N=8, E=16, F=8, one thread, warm cache, forward with gradients recorded. Outputs are
verified first; contenders are interleaved; CPU time of the thread. Bar: at most 60 us
and no longer than PyG in the same run.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch_geometric.nn as pyg
from torch.nn import Linear

import gnnoffload.nn as ours
from gnnoffload import Graph

N, E, F = 8, 16, 8
LAYERS = {
    "GCNConv": lambda nn: nn.GCNConv(F, F),
    "SAGEConv": lambda nn: nn.SAGEConv(F, F),
    "GINConv": lambda nn: nn.GINConv(Linear(F, F)),
    "GINEConv": lambda nn: nn.GINEConv(Linear(F, F)),
    "GraphConv": lambda nn: nn.GraphConv(F, F),
}


def microseconds(call, n=300):
    start = time.thread_time()
    for _ in range(n):
        call()
    return (time.thread_time() - start) / n * 1e6


def measure(name, rounds):
    """{contender: [microseconds per round]} of one layer."""
    edge_index = torch.randint(N, (2, E))
    graph = Graph(edge_index, (N, N))
    x = torch.randn(N, F, requires_grad=True)
    rest = (torch.randn(E, F),) if name == "GINEConv" else ()
    layer, stock = LAYERS[name](ours), LAYERS[name](pyg)
    layer.load_state_dict(stock.state_dict())
    torch.testing.assert_close(layer(x, edge_index, *rest), stock(x, edge_index, *rest))
    contenders = {
        "edge_index": lambda: layer(x, edge_index, *rest),
        "Graph": lambda: layer(x, graph, *rest),
        "pyg": lambda: stock(x, edge_index, *rest),
    }
    times = {label: [] for label in contenders}
    for _ in range(rounds + 1):  # the first round warms up
        for label, call in contenders.items():
            times[label].append(microseconds(call))
    return {label: series[1:] for label, series in times.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write all samples to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples = {name: measure(name, options.rounds) for name in LAYERS}
    print(
        f"{'us per call: median (min)':<26}{'edge_index':>16}{'Graph':>16}{'pyg':>16}"
    )
    for name, series in samples.items():
        cells = [f"{statistics.median(t):.1f} ({min(t):.1f})" for t in series.values()]
        print(f"{name:<25}" + "".join(f"{cell:>16}" for cell in cells))
    if options.json:
        facts = {"torch": torch.__version__, "layers": samples}
        with open(options.json, "w") as file:
            json.dump(facts, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
