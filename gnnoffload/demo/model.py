"""Encode, process, decode: the mesh GNN that steps a field on the sphere.

Nodes carry the field and the wind in their own frame, edges their geometry and the wind
along them. Every input is local, nothing says where on the sphere a node is, so what is
learned for one axis holds for another. The decoder gives a coefficient for each edge: a
learned finite-difference stencil (Bar-Sinai et al., PNAS 116, 2019), so that a constant
field stays constant whatever was learned.
"""

import numpy as np
import torch
from torch import Tensor, nn

from gnnoffload.demo.advection import Flow
from gnnoffload.mesh import Icosphere
from gnnoffload.nn import InteractionNetwork
from gnnoffload.ops import spmm

NODE_INPUTS, EDGE_INPUTS = 3, 5


class MeshGNN(nn.Module):
    """Predicts the increment of a field over one time step.

        increment_i = g_i * sum over edges j -> i of  c_ij (h_j - h_i)

    with g from the last node states and c from the last edge states.

    Args:
        width: C, of all node and edge states.
        blocks: the processor, modules (x [N, C], graph, e [E, C]) -> (x, e); anything
            with this signature, so that the demo can exchange them.
    """

    def __init__(self, width: int, blocks):
        super().__init__()
        self.node_encoder = _mlp(NODE_INPUTS, width, width, norm=True)
        self.edge_encoder = _mlp(EDGE_INPUTS, width, width, norm=True)
        self.processor = nn.ModuleList(blocks)
        self.node_decoder = nn.Linear(width, 1)
        self.edge_decoder = nn.Linear(width, 1)

    def forward(self, nodes: Tensor, graph, edges: Tensor) -> Tensor:
        """nodes [N, 3], the field first; edges [E, 5] -> increment [N]."""
        x, e = self.node_encoder(nodes), self.edge_encoder(edges)
        for block in self.processor:
            x, e = block(x, graph, e)
        gain = 1 + self.node_decoder(x).squeeze(1)
        weight = self.edge_decoder(e).squeeze(1)
        field = nodes[:, 0]
        both = torch.stack([field, torch.ones_like(field)], dim=1)
        sums = spmm(graph, both, weight, size=(len(field), len(field)))
        return gain * (sums[:, 0] - field * sums[:, 1])


def mesh_gnn(width: int, layers: int, block=InteractionNetwork) -> MeshGNN:
    return MeshGNN(width, [block(width) for _ in range(layers)])


def node_inputs(field: Tensor, wind: Tensor) -> Tensor:
    """field [N], wind [N, 2] -> [N, 3]."""
    return torch.cat([field[:, None], wind], dim=1)


def flow_inputs(mesh: Icosphere, flow: Flow, hours: float) -> tuple[Tensor, Tensor]:
    """What the model is told of the wind, as distances moved in one step.

    Returns:
        wind [N, 2] east and north, and along [E], the part of the destination's wind
        that comes along the edge; both over the mean length of the finest edges.
    """
    moved = flow.wind(mesh.points) * hours / finest_length(mesh)
    wind = np.einsum("nij,nj->ni", mesh.frames[:, :2], moved)
    source, destination = mesh.edge_index.numpy()
    towards = mesh.points[destination] - mesh.points[source]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    along = np.einsum("ej,ej->e", towards, moved[destination])
    return torch.as_tensor(wind).float(), torch.as_tensor(along).float()


def finest_length(mesh: Icosphere) -> float:
    return float(mesh.edge_lengths[mesh.edge_level == mesh.level].mean())


def _mlp(inputs: int, hidden: int, outputs: int, norm: bool) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, *([nn.LayerNorm(outputs)] if norm else []))
