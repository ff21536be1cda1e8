"""What the attention layers share: guards, self-loops with features, returned weights.

GATConv and GATv2Conv replace the self-loops of their graph: existing ones go, one a
node comes, whose features are made from the others (`fill_value`). The looped graph is
built once and kept on the Graph.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn.functional import linear
from torch_geometric.utils import add_self_loops, remove_self_loops
from torch_geometric.utils.loop import compute_loop_attr
from torch_geometric.utils.sparse import set_sparse_value

from gnnoffload.graph import Graph, as_graph
from gnnoffload.nn import _guard
from gnnoffload.nn._adjacency import (
    PLAIN,
    SPARSE,
    SPARSE_TENSOR,
    Adjacency,
    adjacency,
)
from gnnoffload.nn._gcn_norm import with_self_loops
from gnnoffload.nn._linear import linears
from gnnoffload.ops import spmm


class Edges(NamedTuple):
    """The edges that one call of an attention layer runs on."""

    graph: Graph
    attr: Tensor | None  # [E] or [E, D] in the order of graph
    adj: Adjacency  # as the caller gave it
    returned: object  # the edge_index to return with attention weights
    spare: bool = False  # graph has one destination more, for edges that are no more

    def pad(self, rows):
        """[N_dst, ...] -> a row for each destination of `graph`."""
        if not self.spare:
            return rows
        return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])

    def trim(self, rows):
        """Undoes `pad`."""
        return rows[:-1] if self.spare else rows


def edges_of_call(layer, base, x, edge_index, edge_attr, size=None, weights=False):
    """The Edges of one call, or the reason (a str) why PyG must handle it.

    Args
    ----
    base : PyG's class
    x : (sources [N_src, F], destinations [N_dst, F'] or None)
    weights : whether attention weights are to be returned
    """
    reason = _layer_reason(layer, base, x[0]) or _attr_reason(edge_index, edge_attr)
    if reason is not None:
        return reason
    if weights and torch.compiler.is_compiling():
        return "attention weights under torch.compile"
    adj = adjacency(layer, edge_index, x, size)
    if isinstance(adj, str):
        return adj
    if not getattr(layer, "add_self_loops", False):
        return Edges(adj.graph, edge_attr, adj, edge_index)

    n_loops = min(adj.graph.size) if size is None else min(size)
    reason = _loop_reason(layer, adj, edge_index, edge_attr, n_loops, weights)
    if reason is not None:
        return reason
    if weights:
        edge_index = _with_loops_as_pyg(edge_index, n_loops)
        if adj.form is SPARSE:  # whose order is that of the matrix with the loops
            adj = adjacency(layer, edge_index, x, size)
            return Edges(adj.graph, None, adj, edge_index)
    if torch.compiler.is_compiling():
        graph, edge_attr = _traced_looped(layer, adj.graph, edge_attr, n_loops)
        return Edges(graph, edge_attr, adj, edge_index, spare=True)
    graph, edge_attr = _looped(layer, adj.graph, edge_attr, n_loops)
    return Edges(graph, edge_attr, adj, edge_index)


def _layer_reason(layer, base, x):
    """`_guard.blocked`, and what hinders attention layers besides; None if nothing."""
    reason = _guard.blocked(layer, base, x)
    if reason is not None:
        return reason
    if _guard.reduction(layer) != "sum":
        return f"aggr={layer.aggr}"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if layer._edge_update_forward_pre_hooks or layer._edge_update_forward_hooks:
        return "message passing hooks"
    if type(layer).edge_update is not base.edge_update or "edge_update" in vars(layer):
        return "edge_update() overridden"
    return None


def _attr_reason(edge_index, edge_attr):
    if edge_attr is not None:
        if not isinstance(edge_attr, Tensor) or edge_attr.dtype not in _guard.DTYPES:
            return "edge_attr is not a matrix of floats"
        if edge_attr.dim() > 2:
            return f"edge_attr is not a matrix: {edge_attr.dim()} dimensions"
    if hasattr(edge_index, "csr") and edge_index.csr()[2] is not None:
        return "SparseTensor whose values are edge features"
    return None


def _loop_reason(layer, adj, edge_index, edge_attr, n_loops, weights):
    if getattr(edge_index, "layout", None) is torch.sparse_csc:
        return "sparse CSC (PyG adds no loops to it)"
    if adj.form is not PLAIN and edge_attr is not None:
        return "sparse matrix with edge_attr and self-loops (PyG refuses it)"
    if adj.form is SPARSE_TENSOR and weights:
        return "SparseTensor whose diagonal is returned"
    filled = edge_attr is not None and isinstance(layer.fill_value, str)
    if filled and n_loops < adj.graph.num_dst:
        return "fewer sources than destinations to fill the loops of (PyG refuses it)"
    return None


def _looped(layer, graph, edge_attr, n_loops):
    """(graph, edge_attr [E', D]) with new self-loops in place of those that were there.

    edge_attr : [E] or [E, D], or None
    n_loops : self-loops for nodes 0 .. n_loops - 1
    """
    looped = with_self_loops(graph, False, n_loops)
    if edge_attr is None:
        return looped.graph, None
    kept = edge_attr
    if looped.keep is not None:
        kept = edge_attr.index_select(0, looped.keep)
    loops = _loop_features(layer, looped, kept, n_loops)
    return looped.graph, torch.cat([kept, loops])


def _traced_looped(layer, graph, edge_attr, n_loops):
    """The same for torch.compile, without a size that depends on the data: old
    self-loops point to one destination more, whose row nobody reads."""
    source, destination = graph.edge_index.unbind(0)
    n_dst = graph.num_dst
    destination = torch.where(source == destination, n_dst, destination)
    nodes = torch.arange(n_loops, device=source.device)
    ends = torch.cat([source, nodes]), torch.cat([destination, nodes])
    looped, _ = as_graph(torch.stack(ends), (graph.num_src, n_dst + 1))
    if edge_attr is None:
        return looped, None
    first = destination if layer.flow == "source_to_target" else source
    edges = torch.stack([source, first])
    loops = compute_loop_attr(edges, edge_attr, n_dst + 1, False, layer.fill_value)
    return looped, torch.cat([edge_attr, loops[:n_loops]])


def _loop_features(layer, looped, kept, n_loops):
    """[n_loops, D] by the layer's fill_value from the kept edges [E', D].

    Sums and means go through the product with the incidence matrix: deterministic."""
    fill, n_edges = layer.fill_value, kept.shape[0]
    forward = layer.flow == "source_to_target"
    if fill in ("mean", "add", "sum") and isinstance(fill, str) and forward:
        reduce = "mean" if fill == "mean" else "sum"
        rows = kept if kept.dim() == 2 else kept.view(-1, 1)
        out = spmm(_scatter(looped, n_edges), rows, reduce=reduce)[:n_loops]
        return out if kept.dim() == 2 else out.view(-1)
    edges = looped.graph.edge_index[:, :n_edges]
    if not forward:
        edges = edges.flip(0)
    return compute_loop_attr(edges, kept, n_loops, False, fill)


def _scatter(looped, n_edges):
    """The graph from kept edges to their destinations, kept with the looped graph."""
    cache = looped.graph.cache
    if "loop features" not in cache:
        edges = looped.graph.edge_index[1, :n_edges]
        pairs = torch.stack([torch.arange(n_edges, device=edges.device), edges])
        cache["loop features"] = Graph(pairs, (n_edges, looped.graph.num_dst))
    return cache["loop features"]


# ----------------------------------------------------------------- attention weights


def _with_loops_as_pyg(edge_index, n_loops):
    """The graph that PyG returns with its attention weights, in its order."""
    if isinstance(edge_index, Graph):
        edge_index = edge_index.edge_index
    edge_index, _ = remove_self_loops(edge_index)
    return add_self_loops(edge_index, num_nodes=n_loops)[0]


def weights_as_pyg(edges, alpha, in_matrix=True):
    """What PyG returns for `return_attention_weights`, alpha [E, H].

    (edge_index, alpha); (matrix, alpha), with alpha as its values where `in_matrix`; a
    SparseTensor
    """
    edge_index = edges.returned
    if edges.adj.form is SPARSE_TENSOR:
        return edge_index.set_value(alpha, layout="coo")
    if edges.adj.form is SPARSE and in_matrix:
        return set_sparse_value(edge_index, alpha), alpha
    if isinstance(edge_index, Graph):
        edge_index = edge_index.edge_index
    return edge_index, alpha


def finish(layer, out, x_dst):
    """out [N, H, C] -> [N, H * C] or the mean over heads, + residual + bias."""
    out = out.flatten(1) if layer.concat else out.mean(dim=1)
    res, bias = layer._modules.get("res"), layer.bias
    if res is None or x_dst is None:
        return out if bias is None else out + bias
    if bias is None or not _guard.is_plain(res):
        out = out + res(x_dst)
        return out if bias is None else out + bias
    return out + linear(x_dst, res.weight, bias)


def differentiable(alpha, graph, dropout, scores, *operands):
    """alpha [E, H] of a fused op as a function of `operands`.

    The ops make their weights without a gradient. Here backward, if anyone asks for it,
    computes scores(*operands) [E, H] and their softmax in plain torch: [E, H, C] then.
    """
    return _Weights.apply(alpha.detach(), graph, dropout, scores, *operands)


class _Weights(Function):
    @staticmethod
    def forward(ctx, alpha, graph, dropout, scores, *operands):
        ctx.graph, ctx.dropout, ctx.scores = graph, dropout, scores
        ctx.save_for_backward(alpha, *operands)
        return alpha.view_as(alpha)

    @staticmethod
    def backward(ctx, grad):
        from gnnoffload.attention import edge_softmax

        alpha, *operands = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        with torch.enable_grad():
            operands = [
                None if t is None else t.detach().requires_grad_(need)
                for t, need in zip(operands, wanted, strict=True)
            ]
            again = edge_softmax(ctx.graph, ctx.scores(*operands))
            if ctx.dropout > 0:
                again = again * ((alpha != 0) / (1 - ctx.dropout))
            leaves = [t for t, need in zip(operands, wanted, strict=True) if need]
            grads = iter(torch.autograd.grad(again, leaves, grad.to(again.dtype)))
        return None, None, None, None, *(next(grads) if w else None for w in wanted)


def projections(x, *layers, more=()):
    """[layer(x) for each of layers] and linears(x, *more), as one node where all layers
    are plain."""
    if all(map(_guard.is_plain, layers)):
        return linears(x, *((layer.weight, layer.bias) for layer in layers), *more)
    return [*(layer(x) for layer in layers), *linears(x, *more)]


def projected_edges(layer, edge_attr):
    """lin_edge of edge_attr [E, D] or [E], as arguments of gatv2 and dot_attention: the
    raw features and the weight, so that the op projects, where lin_edge is plain."""
    if edge_attr is None or layer.lin_edge is None:
        return {}
    if edge_attr.dim() == 1:
        edge_attr = edge_attr.view(-1, 1)
    if _guard.is_plain(layer.lin_edge):
        return {"edge_attr": edge_attr, "edge_weight": layer.lin_edge.weight}
    edge = layer.lin_edge(edge_attr)
    return {"edge": edge.view(-1, layer.heads, layer.out_channels)}
