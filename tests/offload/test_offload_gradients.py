"""Law 4: offload changes no bit of any gradient, over layers people write."""

import contextlib

import pytest
import torch
from offload_steps import assert_empty, assert_same, gradients, x
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.law(4)


class Fn(nn.Module):
    """A function with some linear layers to train."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, *inputs):
        return self.function(self.layers, *inputs)


def attention(layers, h):
    qkv = layers[0](h)
    q, k, v = qkv.chunk(3, dim=-1)  # three saved views of one storage
    return layers[1](F.softmax(q @ k.transpose(-1, -2), dim=-1) @ v)


def slices(layers, h):
    h = layers[0](h).exp()
    left, right = h[:, :16] * h[:, 16:], h[::2] * h[1::2]
    return left.sum() * right.exp().sum(dim=1, keepdim=True)


def transposes(layers, h):
    h = layers[0](h).tanh()
    return (h.t().exp() @ h).t() * layers[1](h).t()[:32].t()[:32]


def expanded(layers, h):
    h = layers[0](h)
    row = h.mean(dim=0, keepdim=True).expand_as(h)  # stride 0
    return (h * row).sin() * row


def gather_scatter(layers, h, index):
    h = layers[0](h).relu()
    message = layers[1](h[index[0]]).exp() * h[index[1]]
    return torch.zeros_like(h).index_add(0, index[1], message)


def two_dtypes(layers, h):
    h = layers[0](h).exp()
    pair = torch.view_as_complex(h.view(-1, h.shape[1] // 2, 2))
    return (pair * pair).abs() + h[:, ::2].sin()


def complex_conj(layers, h):
    z = torch.complex(layers[0](h), h)
    return (z * z.conj() + z.conj().imag.sin() * z).abs()


def untouched(layers, h):
    a, b = layers[0](h).exp(), layers[1](h).exp()
    del a  # a branch without a loss
    return b


def sparse(layers, h):
    eye = torch.eye(h.shape[0]).to_sparse()
    return torch.sparse.mm(eye, layers[0](h).exp()).exp()


def inplace_after_use(layers, h):
    h = layers[0](h)
    out = h.relu()
    h.add_(1)  # relu saved its output, so this is allowed
    return out * out


L = nn.Linear
INDEX = torch.randint(0, 64, (2, 300), generator=torch.Generator().manual_seed(5))
CASES = {
    "linear": (lambda: L(32, 32), [x(64, 32, grad=True)]),
    "mlp": (
        lambda: nn.Sequential(L(32, 48), nn.ReLU(), L(48, 48), nn.ReLU(), L(48, 8)),
        [x(64, 32)],
    ),
    "layer_norm": (
        lambda: nn.Sequential(L(32, 32), nn.LayerNorm(32), nn.GELU(), L(32, 4)),
        [x(64, 32, grad=True)],
    ),
    "softmax": (
        lambda: nn.Sequential(L(32, 32), nn.Softmax(-1), L(32, 4)),
        [x(64, 32)],
    ),
    "batch_norm": (lambda: nn.Sequential(L(32, 32), nn.BatchNorm1d(32)), [x(64, 32)]),
    "conv": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU()), [x(2, 4, 32)]),
    "lstm": (lambda: Fn(lambda ls, h: ls[0](h)[0], nn.LSTM(8, 8)), [x(5, 3, 8)]),
    "dropout": (
        lambda: nn.Sequential(L(32, 32), nn.Dropout(0.5), L(32, 4)),
        [x(64, 32)],
    ),
    "qkv_chunks": (lambda: Fn(attention, L(32, 96), L(32, 8)), [x(64, 32, grad=True)]),
    "slices": (lambda: Fn(slices, L(32, 32)), [x(64, 32)]),
    "transposes": (lambda: Fn(transposes, L(32, 32), L(32, 32)), [x(32, 32)]),
    "expanded": (lambda: Fn(expanded, L(32, 32)), [x(64, 32)]),
    "index": (lambda: Fn(gather_scatter, L(32, 32), L(32, 32)), [x(64, 32), INDEX]),
    "two_dtypes": (lambda: Fn(two_dtypes, L(32, 32)), [x(64, 32)]),
    "complex": (lambda: Fn(complex_conj, L(32, 32)), [x(64, 32)]),
    "unused_branch": (lambda: Fn(untouched, L(32, 32), L(32, 32)), [x(64, 32)]),
    "sparse": (lambda: Fn(sparse, L(32, 32)), [x(64, 32)]),
    "inplace": (lambda: Fn(inplace_after_use, L(32, 32)), [x(64, 32)]),
    "bf16": (
        lambda: nn.Sequential(L(32, 32), nn.LayerNorm(32), nn.SiLU()).bfloat16(),
        [x(64, 32, dtype=torch.bfloat16)],
    ),
    "float64": (
        lambda: nn.Sequential(L(32, 32), nn.Tanh()).double(),
        [x(64, 32).double()],
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
        [x(2, 16, 32, grad=True)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_bit_identical(name, move_all):
    build, inputs = CASES[name]
    plain = gradients(build, inputs, steps=3)
    ours = gradients(build, inputs, move_all, steps=3)
    assert_same(ours, plain)
    assert move_all.report().bytes_out > 0, str(move_all.report())
    assert_empty(move_all)


def test_autocast_moves_no_weight(move_all):
    """A weight's bfloat16 copy is a parameter too: it never leaves."""
    width, rows = 64, 16
    build = lambda: nn.Sequential(*(L(width, width, bias=False) for _ in range(4)))  # noqa: E731
    inputs = [x(rows, width)]

    def run(context):
        @contextlib.contextmanager
        def both():
            with context, torch.autocast("cpu", dtype=torch.bfloat16):
                yield

        return gradients(build, inputs, both())

    plain = run(contextlib.nullcontext())
    assert_same(run(move_all), plain)
    report = move_all.report()
    activations = 5 * rows * width * 4  # each in float32 and bfloat16 at most
    assert 0 < report.bytes_out <= 2 * activations
    assert report.skipped["parameter_cast"] == 3  # the first layer needs none
