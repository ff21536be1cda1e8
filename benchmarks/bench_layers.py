"""Host cost of one layer call on a graph too small to matter, ours beside PyG's.

N=8, E=16, F=8, one thread, warm cache, forward with gradients recorded. Outputs are
verified first; contenders are interleaved; CPU time of the thread.

Bars, by the median over rounds, for an edge_index and for a Graph alike: a call takes
at most 60 microseconds, and no longer than PyG's in the same round.
"""

import argparse
import os
import time

import measure
import torch
import torch_geometric.nn as pyg
from torch.nn import Linear

import gnnoffload.nn as ours
from gnnoffload import Graph

BAR = 60  # microseconds
FORMS = "edge_index", "Graph"
N, E, F = 8, 16, 8
LAYERS = {
    "GCNConv": lambda nn: nn.GCNConv(F, F),
    "SAGEConv": lambda nn: nn.SAGEConv(F, F),
    "GINConv": lambda nn: nn.GINConv(Linear(F, F)),
    "GINEConv": lambda nn: nn.GINEConv(Linear(F, F)),
    "GraphConv": lambda nn: nn.GraphConv(F, F),
}


def contenders(name):
    """{label: call} of one layer, after a check that all give the same."""
    edge_index = torch.randint(N, (2, E))
    graph = Graph(edge_index, (N, N))
    x = torch.randn(N, F, requires_grad=True)
    rest = (torch.randn(E, F),) if name == "GINEConv" else ()
    layer, stock = LAYERS[name](ours), LAYERS[name](pyg)
    layer.load_state_dict(stock.state_dict())
    calls = {
        "edge_index": lambda: layer(x, edge_index, *rest),
        "Graph": lambda: layer(x, graph, *rest),
        "pyg": lambda: stock(x, edge_index, *rest),
    }
    for form in FORMS:
        torch.testing.assert_close(calls[form](), calls["pyg"]())
    return calls


def judge(samples):
    """[{bar, held, worst, values}] of the two bars, values by layer and form."""
    calls, shares = {}, {}
    for name, seconds in samples.items():
        for form in FORMS:
            call, stock = seconds[form], seconds["pyg"]
            calls[f"{name}, {form}"] = measure.median(call) * 1e6
            shares[f"{name}, {form}"] = measure.median(measure.ratios(call, stock))
    return [
        _bar(f"at most {BAR} us a call", calls, BAR, "us"),
        _bar("no longer than PyG", shares, 1, "of PyG's time"),
    ]


def _bar(text, values, limit, unit):
    worst = max(values, key=values.get)
    number = f"{values[worst]:.4g} {unit} ({worst})"
    held = values[worst] <= limit
    return {"bar": text, "held": held, "worst": number, "values": values}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    samples = {
        name: measure.interleave(
            contenders(name), options.rounds, time.thread_time, sample=20e-3
        )
        for name in LAYERS
    }
    print(
        f"{'us per call: median (min)':<26}{'edge_index':>16}{'Graph':>16}{'pyg':>16}"
    )
    for name, seconds in samples.items():
        cells = [
            f"{measure.median(t) * 1e6:.1f} ({min(t) * 1e6:.1f})"
            for t in seconds.values()
        ]
        print(f"{name:<26}" + "".join(f"{cell:>16}" for cell in cells))
    bars = judge(samples)
    print(f"\nload {load:.1f} on {os.cpu_count()} cores when it began")
    for bar in bars:
        print(f"{'held  ' if bar['held'] else 'MISSED'} {bar['bar']}: {bar['worst']}")
    if not options.no_save:
        result = measure.facts(["torch", "torch_geometric"])
        result |= {"load": load, "bars": bars, "seconds": samples}
        measure.save("layers", result)


if __name__ == "__main__":
    main()
