"""What `Graph(reorder=...)` is worth: one product, one graph, every node order.

    make bench OP=reorder

For each benchmark graph, forward of `spmm` (F = 128, float32, one thread) with the
nodes as they came and renumbered; and the seconds that the graph takes to build, once.
Nodes come in random order, the worst case; the mesh has coordinates.
"""

import argparse
import time

import torch

import gnnoffload as go
from benchmarks import measure
from benchmarks.graphs import GRAPHS, mesh
from gnnoffload.mesh import icosphere

NAMES = ("mesh6", "arxiv-like", "uniform", "kron18", "hub")


def shuffled_mesh(level):
    """The mesh with its nodes in random order, and their coordinates."""
    edge_index, n = mesh(level)
    label = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    pos = torch.from_numpy(icosphere(level).points)
    place = torch.empty_like(label)
    place[label] = torch.arange(n)
    return label[edge_index], n, pos[place]


def graph_of(name):
    """(edge_index, number of nodes, coordinates or None)"""
    if name.startswith("mesh"):
        return shuffled_mesh(int(name[4:]))
    return *GRAPHS[name](), None


def measure_graph(name, width, rounds):
    """{order: {"seconds": of the product, "order_seconds": of renumbering}}"""
    edge_index, n, pos = graph_of(name)
    x = torch.randn(n, width)
    orders = [None, "degree", "rcm"] + ([] if pos is None else ["morton", "hilbert"])
    runs, result, expected = {}, {}, None
    for order in orders:
        begin = time.process_time()
        graph = go.Graph(edge_index, (n, n), reorder=order, pos=pos)
        seconds = time.process_time() - begin
        moved = graph.permute(x).contiguous()
        y = graph.restore(go.spmm(graph, moved))
        if expected is None:
            expected = y
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)
        key = order or "as given"
        result[key] = {"build_seconds": seconds}
        runs[key] = lambda graph=graph, moved=moved: go.spmm(graph, moved)
    seconds = measure.interleave(runs, rounds)
    for key in runs:
        ratios = measure.ratios(seconds["as given"], seconds[key])
        result[key] |= {
            "seconds": measure.median(seconds[key]),
            "speedup_quartiles": measure.quartiles(ratios),
        }
    return {"nodes": n, "edges": edge_index.shape[1], "orders": result}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--graphs", nargs="*", default=NAMES)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    measure.recycle_memory()
    graphs = {}
    print(f"spmm forward, F = {options.width}, float32, one thread\n")
    print("| graph | order | ms | speed-up | build, s |\n|---|---|---|---|---|")
    for name in options.graphs:
        graphs[name] = measure_graph(name, options.width, options.rounds)
        for order, row in graphs[name]["orders"].items():
            low, middle, high = row["speedup_quartiles"]
            print(
                f"| {name} | {order} | {1e3 * row['seconds']:.1f} | {middle:.2f} "
                f"({low:.2f} to {high:.2f}) | {row['build_seconds']:.2f} |",
                flush=True,
            )
    result = measure.facts(["torch", "numpy"])
    measure.save("reorder", result | {"width": options.width, "graphs": graphs})


if __name__ == "__main__":
    main()
