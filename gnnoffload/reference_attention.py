"""The ops of `gnnoffload.attention` in plain torch: slow, obvious, the oracle of the
tests. Every function makes its messages as an [E, H, C] tensor; autograd does the rest.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from gnnoffload.graph import Graph, as_graph


def _ends(graph, size):
    """(source, destination, n_dst) of a Graph or an edge_index."""
    if not isinstance(graph, Graph):
        graph = as_graph(graph, size)[0]
    return *graph.edge_index, graph.num_dst


def edge_softmax(graph, scores, *, size=None) -> Tensor:
    _, destination, n_dst = _ends(graph, size)
    index = destination.view(-1, *[1] * (scores.dim() - 1)).expand_as(scores)
    top = torch.full((n_dst, *scores.shape[1:]), -math.inf, dtype=scores.dtype)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    e = (scores - top[destination]).exp()
    total = torch.zeros_like(top).index_add(0, destination, e)
    return e / total[destination]


def gat(
    graph,
    x,
    score_src,
    score_dst,
    score_edge=None,
    *,
    negative_slope=0.2,
    dropout=0.0,
    seed=None,
    return_weights=False,
    size=None,
):
    size = size or (x.shape[0], score_dst.shape[0])
    source, destination, _ = _ends(graph, size)
    scores = score_src[source] + score_dst[destination]
    if score_edge is not None:
        scores = scores + score_edge
    scores = leaky_relu(scores, negative_slope)
    return _sum(graph, scores, x[source], dropout, seed, return_weights, size)


def gatv2(
    graph,
    x_src,
    x_dst,
    att,
    edge=None,
    *,
    edge_attr=None,
    edge_weight=None,
    negative_slope=0.2,
    dropout=0.0,
    seed=None,
    return_weights=False,
    size=None,
):
    size = size or (x_src.shape[0], x_dst.shape[0])
    source, destination, _ = _ends(graph, size)
    h = x_src[source] + x_dst[destination]
    if edge_attr is not None:
        edge = (edge_attr @ edge_weight.t()).view_as(h)
    if edge is not None:
        h = h + edge
    scores = (leaky_relu(h, negative_slope) * att).sum(-1)
    return _sum(graph, scores, x_src[source], dropout, seed, return_weights, size)


def dot_attention(
    graph,
    query,
    key,
    value,
    edge=None,
    *,
    edge_attr=None,
    edge_weight=None,
    scale=None,
    dropout=0.0,
    seed=None,
    return_weights=False,
    size=None,
):
    size = size or (key.shape[0], query.shape[0])
    source, destination, _ = _ends(graph, size)
    keys, values = key[source], value[source]
    if edge_attr is not None:
        edge = (edge_attr @ edge_weight.t()).view_as(keys)
    if edge is not None:
        keys, values = keys + edge, values + edge
    scale = 1 / math.sqrt(max(query.shape[2], 1)) if scale is None else scale
    scores = (query[destination] * keys).sum(-1) * scale
    return _sum(graph, scores, values, dropout, seed, return_weights, size)


def _sum(graph, scores, values, dropout, seed, return_weights, size):
    """The sum of values [E, H, C] weighted by the softmax of scores [E, H]."""
    _, destination, n_dst = _ends(graph, size)
    alpha = edge_softmax(graph, scores, size=size)
    if dropout > 0:
        alpha = alpha * kept(int(seed), *scores.shape, dropout) / (1 - dropout)
    out = values.new_zeros(n_dst, *values.shape[1:])
    out = out.index_add(0, destination, alpha[..., None] * values)
    return (out, alpha) if return_weights else out


def kept(seed, n_edges, n_heads, dropout) -> Tensor:
    """`[E, H]` bool: which weights dropout keeps.

    Word h % 4 of Philox 4x32-10 (Salmon et al. 2011) under key `seed` and counter
    (edge, h / 4), kept where it is at least dropout * 2^32.
    """
    word, key = 2**32, [seed % 2**32, seed // 2**32]
    edge = torch.arange(n_edges)[:, None].expand(-1, n_heads)
    head = torch.arange(n_heads).expand(n_edges, -1)
    c = [edge % word, edge // word, head // 4, torch.zeros_like(head)]
    for _ in range(10):
        a_high, a_low = _product(0xD2511F53, c[0])
        b_high, b_low = _product(0xCD9E8D57, c[2])
        c = [b_high ^ c[1] ^ key[0], b_low, a_high ^ c[3] ^ key[1], a_low]
        key = [(key[0] + 0x9E3779B9) % word, (key[1] + 0xBB67AE85) % word]
    words = torch.stack(c, -1).gather(-1, (head % 4)[..., None])[..., 0]
    return words >= int(dropout * word)


def _product(a, b):
    """(high, low) 32 bits of a * b for 32-bit numbers in int64, by 16-bit halves."""
    low, high = a % 2**16 * b, a // 2**16 * b  # below 2^48
    high = high + low // 2**16
    return high // 2**16, high % 2**16 * 2**16 + low % 2**16
