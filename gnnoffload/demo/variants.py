"""The same model in the ways people train it.

| variant    | processor block                     | kept in memory for backward |
|------------|-------------------------------------|-----------------------------|
| stock      | concatenate, one MLP, index_add     | all, [E, 3C] included       |
| plain      | `InteractionNetwork`                | all                         |
| checkpoint | plain, recomputed in backward       | block inputs, then a block  |
| offload    | plain, in `gnnoffload.offload(...)` | `budget` bytes              |

and on CUDA, plain with how others offload: the names of `offload_peers`.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gnnoffload.demo.model import MeshGNN, mesh_gnn
from gnnoffload.demo.offload_peers import PEERS, peer
from gnnoffload.nn import InteractionNetwork

VARIANTS = ("stock", "plain", "checkpoint", "offload")


class StockBlock(nn.Module):
    """The block as it is usually written; same weights and results as ours."""

    def __init__(self, width: int):
        super().__init__()
        ours = InteractionNetwork(width)
        parts = (ours.edge_in, ours.source_in, ours.destination_in)
        self.edge_mlp = _mlp(parts, ours.edge_out[0], ours.edge_norm)
        self.node_mlp = _mlp(
            (ours.node_in, ours.sum_in), ours.node_out[0], ours.node_norm
        )

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor):
        source, destination = edge_index
        message = self.edge_mlp(torch.cat([e, x[source], x[destination]], dim=1))
        total = torch.zeros_like(x).index_add(0, destination, message)
        return x + self.node_mlp(torch.cat([x, total], dim=1)), e + message


class CheckpointBlock(InteractionNetwork):
    """Recomputed in backward. Reentrant: it saves its inputs where hooks see them."""

    def forward(self, x: Tensor, edge_index, e: Tensor):
        return checkpoint(super().forward, x, edge_index, e, use_reentrant=True)


BLOCKS = {"stock": StockBlock, "checkpoint": CheckpointBlock}


def build(variant: str, width: int, layers: int, seed: int = 0) -> MeshGNN:
    """The variant's model; every variant has the same weights."""
    torch.manual_seed(seed)
    return mesh_gnn(width, layers, BLOCKS.get(variant, InteractionNetwork))


def gradients(model: MeshGNN) -> Tensor:
    """All gradients as one vector, in the order and shape of the plain model's."""
    coders = (model.node_encoder, model.edge_encoder)
    coders += (model.node_decoder, model.edge_decoder)
    found = [p.grad for module in coders for p in module.parameters()]
    for block in model.processor:
        grads = {name: p.grad for name, p in block.named_parameters()}
        if isinstance(block, StockBlock):
            grads = _as_ours(grads)
        found += [grads[name] for name in sorted(grads)]
    return torch.cat([g.reshape(-1) for g in found])


def context(variant: str, budget: int | None, spill_dir: str | None, device):
    """The context to enter around forward and loss."""
    if variant in PEERS:
        return peer(variant, device)
    if variant != "offload":
        return contextlib.nullcontext()
    import gnnoffload

    store = "file" if device.type == "cpu" else "host"
    return gnnoffload.offload(budget=budget, store=store, spill_dir=spill_dir)


def _mlp(parts, last: nn.Linear, norm: nn.Module) -> nn.Sequential:
    """One Linear from the parts of a split one, then the rest as it is."""
    weight = torch.cat([part.weight for part in parts], dim=1).detach()
    first = nn.Linear(weight.size(1), weight.size(0), device="meta")  # draws no numbers
    first.weight, first.bias = nn.Parameter(weight), parts[0].bias
    return nn.Sequential(first, nn.SiLU(), last, norm)


def _as_ours(stock: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a stock block under our parameters' names."""
    ours = {}
    edge, node = ("edge_in", "source_in", "destination_in"), ("node_in", "sum_in")
    for mlp, parts in (("edge", edge), ("node", node)):
        grad = {
            name.removeprefix(f"{mlp}_mlp."): g
            for name, g in stock.items()
            if name.startswith(mlp)
        }
        width = grad["2.weight"].size(0)
        for part, piece in zip(
            parts, grad["0.weight"].split(width, dim=1), strict=True
        ):
            ours[f"{part}.weight"] = piece
        ours[f"{parts[0]}.bias"] = grad["0.bias"]
        for kind in ("weight", "bias"):
            ours[f"{mlp}_out.0.{kind}"] = grad[f"2.{kind}"]
            ours[f"{mlp}_norm.{kind}"] = grad[f"3.{kind}"]
    return ours
