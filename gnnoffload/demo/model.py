"""Encode, process, decode: the mesh GNN that steps a field on the sphere.

It learns a discretisation (Bar-Sinai et al., PNAS 116, 2019): from the wind at the
nodes and the geometry of the edges it makes a stencil, one coefficient for each edge,
that takes a field one time step further. Every input is local, nothing says where on
the sphere a node is, so what is learned for one axis holds for another; and a constant
field stays constant whatever was learned.
"""

import numpy as np
import torch
from torch import Tensor, nn

from gnnoffload.demo.advection import Flow
from gnnoffload.mesh import Icosphere
from gnnoffload.nn import InteractionNetwork
from gnnoffload.ops import spmm

NODE_INPUTS, EDGE_INPUTS, PASSES = 2, 5, 2


class MeshGNN(nn.Module):
    """Wind and geometry -> stencil.

        h_i + g_i * sum over edges j -> i of  c_ij (h_j - h_i)

    with g from the last node states and c from the last edge states. A time step is
    two such passes with stencils of their own, so it reaches two edges far.

    Args:
        width: C, of all node and edge states.
        blocks: the processor, modules (x [N, C], graph, e [E, C]) -> (x, e); anything
            with this signature, so that the demo can exchange them.
    """

    def __init__(self, width: int, blocks):
        super().__init__()
        self.node_encoder = _mlp(NODE_INPUTS, width)
        self.edge_encoder = _mlp(EDGE_INPUTS, width)
        self.processor = nn.ModuleList(blocks)
        self.node_decoder = nn.Linear(width, PASSES)
        self.edge_decoder = nn.Linear(width, PASSES)
        # Small coefficients: an untrained model should not blow the field up.
        nn.init.normal_(self.edge_decoder.weight, std=0.1 / width**0.5)

    def forward(self, wind: Tensor, graph, edges: Tensor) -> tuple[Tensor, Tensor]:
        """wind [N, 2], edges [E, 5] -> g [N, 2] and c [2, E]."""
        x, e = self.node_encoder(wind), self.edge_encoder(edges)
        for block in self.processor:
            x, e = block(x, graph, e)
        return 1 + self.node_decoder(x), self.edge_decoder(e).t().contiguous()


def advance(graph, stencil: tuple[Tensor, Tensor], fields: Tensor) -> Tensor:
    """fields [N, K] one time step later."""
    size, ones = (len(fields), len(fields)), torch.ones_like(fields[:, :1])
    for gain, weight in zip(stencil[0].t(), stencil[1], strict=True):
        total = spmm(graph, ones, weight, size=size)
        change = spmm(graph, fields, weight, size=size) - fields * total
        fields = fields + gain[:, None] * change
    return fields


def mesh_gnn(width: int, layers: int, block=InteractionNetwork) -> MeshGNN:
    return MeshGNN(width, [block(width) for _ in range(layers)])


def inputs(mesh: Icosphere, flow: Flow, hours: float) -> tuple[Tensor, Tensor]:
    """What the model is told, with winds as distances moved in one step.

    Returns:
        wind [N, 2], east and north, over the mean length of the finest edges; edges
        [E, 5], their geometry and the part of the destination's wind along them.
    """
    moved = flow.wind(mesh.points) * hours / finest_length(mesh)
    wind = np.einsum("nij,nj->ni", mesh.frames[:, :2], moved)
    source, destination = mesh.edge_index.numpy()
    towards = mesh.points[destination] - mesh.points[source]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    along = np.einsum("ej,ej->e", towards, moved[destination])
    along = torch.as_tensor(along).float()
    edges = torch.cat([mesh.edge_features(), along[:, None]], dim=1)
    return torch.as_tensor(wind).float(), edges


def finest_length(mesh: Icosphere) -> float:
    return float(mesh.edge_lengths[mesh.edge_level == mesh.level].mean())


def _mlp(inputs: int, width: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.LayerNorm(width))
