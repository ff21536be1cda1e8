"""Whole training steps on the simulated machine, against plain torch without it."""

import contextlib
import gc

import torch
from torch import nn
from torch_device import offload

ROWS, WIDTH, DEPTH = 128, 64, 5
BLOCK = ROWS * WIDTH * 4


def mlp():
    layers = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH)]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Views of one storage, a softmax, dropout, a residual."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        score = torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1)
        return x + self.out(nn.functional.dropout(score, 0.2) @ v)


class Gin(nn.Module):
    """Message passing by our own op, twice over one graph."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        import gnnoffload as go

        generator = torch.Generator().manual_seed(1)
        edges = torch.randint(0, ROWS, (2, 4 * ROWS), generator=generator)
        graph = go.Graph(edges, (ROWS, ROWS))
        x = torch.relu(self.first(go.spmm(graph, x) + x))
        return self.second(go.spmm(graph, x) + x)


MODELS = {"mlp": mlp, "attention": Attention, "gin": Gin}


def inputs():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))


def build(model):
    torch.manual_seed(7)
    return MODELS[model]()


def gradients(net, x, context=None, step=0):
    """Loss and gradients of one step, bit for bit comparable."""
    torch.manual_seed(100 + step)  # dropout
    net.zero_grad()
    with context if context is not None else contextlib.nullcontext():
        loss = net(x).square().mean()
    loss.backward()
    return [loss.detach().clone(), *(p.grad.clone() for p in net.parameters())]


def plain(model, steps=1):
    net, x = build(model), inputs()
    return [gradients(net, x, step=step) for step in range(steps)]


def offloaded(d, model, engine, steps=3):
    net, x = build(model), inputs()
    return [gradients(net, x, offload(engine), step) for step in range(steps)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert torch.equal(p, q), f"result {i} differs"


def finish(d, engine):
    """The counters of all passes; nothing is held and nothing leaks afterwards."""
    passes = engine.take_finished(True)
    engine.drain()
    state = engine.state()
    held = ("resident", "outward", "inward", "owned", "kept", "blocks", "passes")
    assert not any(state[k] for k in (*held, "slot_bytes")), state
    engine.shutdown()
    gc.collect()
    assert d.m.leaks() == {}
    return passes
