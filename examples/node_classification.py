"""Node classification on a real graph, with our layers or PyG's.

    python examples/node_classification.py --data tolokers.npz --model sage

Reads the npz format of the heterophilous-graphs benchmark (Platonov et al., ICLR 2023,
arXiv 2302.11640; github.com/yandex-research/heterophilous-graphs): node_features
[N, F], node_labels [N] of 0 and 1, edges [E, 2] each stored once, and
{train,val,test}_masks [10, N]. The network is that benchmark's: residual blocks
x + f(LayerNorm(x)), full batch. Prints ROC-AUC on the test nodes at the step with the
best validation figure.
"""

import argparse
import resource
import statistics
import time

import numpy as np
import torch
from torch import nn

from gnnoffload._cuda_lane import device_named
from gnnoffload.errors import DeviceError

MODELS = ("gcn", "sage", "gin", "gat", "gatv2", "transformer")
WITH_LOOPS = ("gat", "gatv2", "transformer")  # the benchmark's graph for these


class Block(nn.Module):
    """x + f(LayerNorm(x)) where f is a graph layer and a small MLP; a transformer has
    a module of its own for each of the two."""

    def __init__(self, layers, model: str, width: int, dropout: float, heads: int = 8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        mlp = nn.Sequential(
            nn.Linear(width, width),
            nn.Dropout(dropout),
            nn.GELU(),
            nn.Linear(width, width),
            nn.Dropout(dropout),
        )
        self.between = None
        if model == "gin":
            self.conv, self.mlp = layers.GINConv(mlp), nn.Identity()
            return
        self.mlp = mlp
        if model in WITH_LOOPS:
            shape = {"in_channels": width, "out_channels": width // heads}
            shape["heads"] = heads
        if model == "transformer":
            self.conv = layers.TransformerConv(**shape, root_weight=False)
            self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
            self.between = nn.LayerNorm(width)
        elif model in WITH_LOOPS:
            layer = {"gat": layers.GATConv, "gatv2": layers.GATv2Conv}[model]
            self.conv = layer(**shape, add_self_loops=False)  # they are there
        else:
            layer = {"gcn": layers.GCNConv, "sage": layers.SAGEConv}[model]
            self.conv = layer(width, width)

    def forward(self, x, edge_index):
        y = self.conv(self.norm(x), edge_index)
        if self.between is None:
            return x + self.mlp(y)
        x = x + self.out(y)
        return x + self.mlp(self.between(x))


class Classifier(nn.Module):
    """features [N, F] -> one logit for each node [N]."""

    def __init__(self, layers, model, features, width, depth, dropout=0.2):
        super().__init__()
        self.first = nn.Sequential(
            nn.Linear(features, width), nn.Dropout(dropout), nn.GELU()
        )
        self.blocks = nn.ModuleList(
            Block(layers, model, width, dropout) for _ in range(depth)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, x, edge_index):
        x = self.first(x)
        for block in self.blocks:
            x = block(x, edge_index)
        return self.last(x).squeeze(1)


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties half (Mann-Whitney)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    rank = (below + (counts + 1) / 2)[inverse]  # from 1, ties averaged
    positive = labels == 1
    n_pos, n_neg = positive.sum(), (~positive).sum()
    return float((rank[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def load(path: str, model: str = "sage") -> dict:
    """Tensors of the file, with both directions of each edge, and with self-loops where
    the model wants them."""
    with np.load(path) as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    edges = data["edges"].t()
    both = torch.cat([edges, edges.flip(0)], dim=1)
    if model in WITH_LOOPS:
        loops = torch.arange(len(data["node_labels"])).expand(2, -1)
        both = torch.cat([both, loops], dim=1)
    data["edge_index"] = both.contiguous()
    return data


def train(data: dict, layers, options, split: int) -> dict:
    """One run on one of the file's splits."""
    torch.manual_seed(split)
    x, edge_index = data["node_features"], data["edge_index"]
    labels = data["node_labels"].float()
    masks = {k: data[f"{k}_masks"][split] for k in ("train", "val", "test")}
    model = Classifier(layers, options.model, x.size(1), options.width, options.layers)
    model.to(x.device)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.0)
    loss_of = nn.functional.binary_cross_entropy_with_logits
    best, losses, seconds = {"val": 0.0}, [], []
    for step in range(options.steps):
        begin = time.perf_counter()
        model.train()
        logits = model(x, edge_index)
        loss = loss_of(logits[masks["train"]], labels[masks["train"]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            scores = model(x, edge_index).cpu().numpy()
        auc = {
            k: roc_auc(scores[masks[k].cpu().numpy()], labels[masks[k]].cpu().numpy())
            for k in ("val", "test")
        }
        if auc["val"] > best["val"]:
            best = {**auc, "step": step}
    return {
        **best,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "seconds_per_step": statistics.median(seconds),
    }


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="npz file, for example tolokers.npz")
    add("--model", "--layer", choices=MODELS, default="sage")
    add("--pyg", action="store_true", help="PyG's own layers instead of ours")
    add("--width", type=int, default=64)
    add("--layers", type=int, default=3)
    add("--rate", type=float, default=3e-3)
    add("--steps", type=int, default=200)
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--splits", type=int, default=1, help="runs, one for each split of the file")
    options = parser.parse_args(argv)
    if options.pyg:
        import torch_geometric.nn as layers
    else:
        import gnnoffload.nn as layers

    try:
        device = device_named(options.device)
    except DeviceError as error:
        parser.error(str(error))
    found = load(options.data, options.model)
    data = {name: tensor.to(device) for name, tensor in found.items()}
    runs = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for split in range(options.splits):
        runs.append(train(data, layers, options, split))
        print(
            f"split {split}: test ROC-AUC {100 * runs[-1]['test']:.2f} % at step "
            f"{runs[-1]['step']}, {runs[-1]['seconds_per_step']:.3f} s a step"
        )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tests = [100 * run["test"] for run in runs]
    result = {
        "runs": runs,
        "test_mean": statistics.mean(tests),
        "seconds_per_step": statistics.median(r["seconds_per_step"] for r in runs),
        "peak_mib_above_data": grown / 1024,
    }
    spread = f" ± {statistics.stdev(tests):.2f}" if len(tests) > 1 else ""
    print(
        f"{options.model} with {'PyG' if options.pyg else 'gnnoffload'}: test ROC-AUC "
        f"{result['test_mean']:.2f}{spread} %, {result['seconds_per_step']:.3f} s a "
        f"training step, peak memory {grown / 1024:.0f} MiB above the data"
    )
    return result


if __name__ == "__main__":
    main()
