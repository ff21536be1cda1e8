"""Our attention inside anemoi's graph transformer blocks: a stand-in, then theirs."""

import sys
import types
from itertools import pairwise

import pytest
import torch

import gnnoffload.integrations.anemoi as backend
from gnnoffload.nn import GraphTransformerConv

LAYERS = "anemoi", "anemoi.models", "anemoi.models.layers", "anemoi.models.layers.block"


class StandIn(torch.nn.Module):
    """What the integration touches of anemoi's GraphTransformerBaseBlock."""

    def __init__(self, graph_attention_backend):
        super().__init__()
        self.graph_attention_backend = graph_attention_backend
        self.out_channels_conv = 4
        self.set_attention_function()

    def set_attention_function(self):
        assert self.graph_attention_backend in ("triton", "pyg")
        self.conv = min  # a plain function, as for triton


@pytest.fixture
def stand_in(monkeypatch):
    for name in LAYERS:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for parent, child in pairwise(LAYERS):
        setattr(sys.modules[parent], child.rsplit(".", 1)[1], sys.modules[child])
    block = sys.modules[LAYERS[-1]]
    block.ATTENTION_BACKEND = ""
    block.GraphTransformerBaseBlock = type("Base", (StandIn,), {})
    return block


def test_register_adds_a_name_and_leaves_the_others(stand_in):
    base = stand_in.GraphTransformerBaseBlock
    with pytest.raises(AssertionError):
        base("gnnoffload")
    backend.register()
    backend.register()
    block = base("gnnoffload")
    assert type(block.conv) is GraphTransformerConv
    assert block.conv.out_channels == 4
    assert block.graph_attention_backend == "gnnoffload"
    assert base("triton").conv is min
    with pytest.raises(AssertionError):
        base("other")


def test_the_environment_variable_of_anemoi_wins(stand_in):
    stand_in.ATTENTION_BACKEND = "gnnoffload"
    backend.register()
    block = stand_in.GraphTransformerBaseBlock("triton")
    assert type(block.conv) is GraphTransformerConv


def test_use_changes_the_blocks_of_a_model(stand_in):
    base = stand_in.GraphTransformerBaseBlock
    model = torch.nn.ModuleList([base("triton"), base("pyg"), torch.nn.Linear(1, 1)])
    model[1].__dict__.pop("conv")
    model[1].conv = torch.nn.Identity()
    state = model.state_dict()
    assert backend.use(model) == 2
    assert all(type(block.conv) is GraphTransformerConv for block in model[:2])
    assert model.state_dict().keys() == state.keys()


def test_another_anemoi_and_none_are_told(stand_in, monkeypatch):
    del stand_in.GraphTransformerBaseBlock
    with pytest.raises(ImportError, match=r"written for 0\.19"):
        backend.register()
    monkeypatch.delitem(sys.modules, LAYERS[-1])
    monkeypatch.delattr(sys.modules[LAYERS[-2]], "block")
    with pytest.raises(ImportError, match="pip install anemoi-models"):
        backend.use(torch.nn.Identity())


# --------------------------------------------------------------------- anemoi's classes


@pytest.fixture
def anemoi_block():
    reason = "anemoi-models is not installed"
    return pytest.importorskip("anemoi.models.layers.block", reason=reason)


def test_the_layer_of_anemoi(anemoi_block):
    theirs = anemoi_block.GraphTransformerConv(out_channels=4)
    ours = GraphTransformerConv(4)
    edge_index = torch.randint(6, (2, 25))
    shapes = (6, 3, 4), (6, 3, 4), (6, 3, 4), (25, 3, 4)
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    results = []
    for conv in (ours, theirs):
        y = conv(*tensors, edge_index, (6, 6))
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_block_of_anemoi(anemoi_block):
    from anemoi.models.distributed.shapes import GraphShardInfo
    from anemoi.utils.config import DotDict

    backend.register()
    kernels = DotDict({"Linear": torch.nn.Linear, "LayerNorm": torch.nn.LayerNorm})
    kernels["Activation"] = torch.nn.GELU
    widths = {"in_channels": 12, "hidden_dim": 16, "out_channels": 12, "num_heads": 3}
    blocks = []
    for name in ("pyg", "gnnoffload"):
        torch.manual_seed(5)
        block = anemoi_block.GraphTransformerProcessorBlock(
            edge_dim=4, layer_kernels=kernels, graph_attention_backend=name, **widths
        )
        blocks.append(block.double())
    assert blocks[0].state_dict().keys() == blocks[1].state_dict().keys()
    edge_index = torch.randint(6, (2, 25))
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    results = []
    for block in blocks:
        torch.manual_seed(6)
        x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
        edge = torch.randn(25, 4, dtype=torch.float64, requires_grad=True)
        y, *_ = block(x, edge, edge_index, GraphShardInfo(), 1, 6)
        wanted = [x, edge, *block.parameters()]
        grads = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
        results.append([y, *(g for g in grads if g is not None)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
