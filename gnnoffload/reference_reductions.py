"""The ops of `gnnoffload.reductions` in plain torch: slow, obvious, the oracle of the
tests. Same names, same arguments, same results; re-exported by `reference`."""

import torch
from torch import Tensor

from gnnoffload.graph import Graph


def _messages(graph, x, edge, size):
    """(messages [E, F], destinations [E], number of destinations)"""
    if isinstance(graph, Graph):
        (source, destination), (_, n_dst) = graph.edge_index, graph.size
    else:
        source, destination = graph.long()
        n_dst = size[1] if size is not None else x.shape[0]
    message = x.index_select(0, source)
    return message if edge is None else message + edge, destination, n_dst


def aggregate(graph, x, reduce, edge=None, *, size=None) -> tuple[Tensor, ...]:
    message, destination, n_dst = _messages(graph, x, edge, size)
    degree = torch.bincount(destination, minlength=n_dst).clamp(min=1)[:, None]

    def sum_of(values):
        zeros = values.new_zeros(n_dst, values.shape[1])
        return zeros.index_add(0, destination, values)

    def one(name):
        if name == "sum":
            return sum_of(message)
        if name == "mean":
            return sum_of(message) / degree.to(x.dtype)
        if name == "var":
            deviation = message - one("mean").index_select(0, destination)
            return sum_of(deviation * deviation) / degree.to(x.dtype)
        if name == "std":
            var = one("var")
            seen = ~(var <= 1e-5)  # NaN is
            return torch.where(seen, torch.where(seen, var, 1.0).sqrt(), 0.0)
        return extreme(message, destination, n_dst, name)

    return tuple(one(name) for name in reduce)


def extreme(message, destination, n_dst, name) -> Tensor:
    """The largest or smallest message of each destination; those that attain it share
    the gradient. A sum of messages / (how many) over the attaining ones: its value is
    the extreme up to rounding, so the value is put in its place."""
    index = destination[:, None].expand_as(message)
    start = message.detach().new_zeros(n_dst, message.shape[1])
    value = start.scatter_reduce(
        0, index, message.detach(), "a" + name, include_self=False
    )
    best = value.gather(0, index)
    attains = (message.detach() == best) | (message.detach().isnan() & best.isnan())
    count = start.scatter_add(0, index, attains.to(message.dtype)).clamp(min=1)
    share = message / count.gather(0, index)
    y = start.scatter_add(0, index, torch.where(attains, share, 0.0))
    return _Value.apply(y, value)


def softmax_aggregate(
    graph,
    x,
    t=1.0,
    edge=None,
    *,
    relu=False,
    eps=1e-7,
    semi_grad=False,
    size=None,
) -> Tensor:
    message, destination, n_dst = _messages(graph, x, edge, size)
    if relu:
        message = message.relu() + eps
    z, index = t * message, destination[:, None].expand_as(message)
    zeros = message.new_zeros(n_dst, message.shape[1])
    most = zeros.detach().scatter_reduce(
        0, index, z.detach(), "amax", include_self=False
    )
    weight = (z - most.gather(0, index)).exp()
    weight = weight / zeros.index_add(0, destination, weight).gather(0, index)
    if semi_grad:
        weight = weight.detach()
    return zeros.index_add(0, destination, weight * message)


class _Value(torch.autograd.Function):
    """value forward, the gradient to y."""

    @staticmethod
    def forward(ctx, y, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None
