"""compare catches a layer that is slightly wrong."""

import pytest
import torch
import torch_geometric.nn as pyg

from gnnoffload.testing import Each, Mismatch, compare

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EDGES = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])


class Scaled(pyg.GCNConv):
    """1 % off, which most of PyG's own tests let pass."""

    def forward(self, x, edge_index, edge_weight=None):
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight) * 1.01


class WrongGradient(pyg.GCNConv):
    def forward(self, x, edge_index, edge_weight=None):
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        y = super().forward(x, edge_index, edge_weight)
        return y + 0.01 * (x.sum() - x.sum().detach())


class Detached(pyg.GCNConv):
    def forward(self, x, edge_index, edge_weight=None):
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x.detach(), edge_index, edge_weight)


class Wider(pyg.GCNConv):
    def forward(self, x, edge_index, edge_weight=None):
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return super().forward(x, edge_index, edge_weight).double()


def inputs():
    return X.clone().requires_grad_(), EDGES


def test_equal_layers_and_the_names_of_what_is_compared():
    result = compare(pyg.GCNConv(5, 3), pyg.GCNConv(5, 3), inputs())
    names = ["output", "grad of argument 0", "grad of bias", "grad of lin.weight"]
    assert sorted(result) == sorted(names)
    assert max(result.values()) == 0.0


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Scaled, "output: differs by 1.00e-02"),
        (WrongGradient, "grad of argument 0: differs"),
        (Detached, "results differ: .*grad of argument 0"),
        (Wider, "output: got torch.float64"),
    ],
)
def test_a_wrong_layer_is_caught(layer, text):
    with pytest.raises(Mismatch, match=text):
        compare(layer(5, 3), pyg.GCNConv(5, 3), inputs())


def test_nan_is_a_difference():
    bad = X.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(Mismatch, match="output"):
        compare(pyg.GCNConv(5, 3), pyg.GCNConv(5, 3), (Each(bad, X), EDGES))


def test_the_caller_s_tensors_and_pairs_stay_untouched():
    x = X.clone().requires_grad_()
    result = compare(
        pyg.SAGEConv(5, 3), pyg.SAGEConv(5, 3), {"x": (x, x), "edge_index": EDGES}
    )
    assert x.grad is None
    assert {"grad of argument x[0]", "grad of argument x[1]"} <= result.keys()
