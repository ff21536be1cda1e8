"""Encode, process, decode: the mesh GNN that steps a field on the sphere.

Nodes carry the field and the wind in their own frame, edges their geometry and the wind
along them. Every input is local, nothing says where on the sphere a node is, so what is
learned for one axis holds for another.
"""

import numpy as np
import torch
from torch import Tensor, nn

from gnnoffload.demo.advection import Flow
from gnnoffload.mesh import Icosphere
from gnnoffload.nn import InteractionNetwork

NODE_INPUTS, EDGE_INPUTS = 3, 5


class MeshGNN(nn.Module):
    """Predicts the scaled increment of a field over one time step.

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
        self.decoder = _mlp(width, width, 1, norm=False)

    def forward(self, nodes: Tensor, graph, edges: Tensor) -> Tensor:
        """nodes [N, 3], edges [E, 5] -> increment [N] in the training data's units."""
        x, e = self.node_encoder(nodes), self.edge_encoder(edges)
        for block in self.processor:
            x, e = block(x, graph, e)
        return self.decoder(x).squeeze(1)


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
