"""Every form in which PyG hands a layer its graph, turned into (Graph, edge values).

| form                  | rows are     | values                                       |
|-----------------------|--------------|----------------------------------------------|
| Graph, edge_index     | sources      | none                                         |
| EdgeIndex             | sources      | none (PyG ignores what it carries here)      |
| torch.sparse adj_t    | destinations | its values, in the order of `.values()`      |
| SparseTensor adj_t    | destinations | its values or none, in row order             |

A SparseTensor is told by its methods (`csr`, `sparse_sizes`), without torch_sparse.
"""

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from gnnoffload.graph import Graph, as_graph

PLAIN, SPARSE, SPARSE_TENSOR = "edge_index", "torch.sparse", "SparseTensor"
INDEX_DTYPES = (torch.int64, torch.int32)
LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


class Adjacency:
    """What a layer runs on: `graph`, `values` [E] or None, and its `form`."""

    __slots__ = ("form", "graph", "values")

    def __init__(self, graph, values=None, form=PLAIN):
        self.graph, self.values, self.form = graph, values, form


def adjacency(layer, adj, x, size=None):
    """The graph of one call, or the reason (a str) why PyG must handle it.

    Args
    ----
    adj : any form of the table above
    x : (sources [N_src, F], destinations [N_dst, F'] or None), as PyG pairs them
    size : (N_src, N_dst) given by the caller, either may be None
    """
    reverse = layer.flow != "source_to_target"
    if reverse and x[0] is not x[1]:
        return "flow=target_to_source with a pair of node features"
    n_src = x[0].shape[0]
    n_dst = None if x[1] is None else x[1].shape[0]

    if isinstance(adj, Graph):
        graph = adj.transpose() if reverse else adj
        if graph.num_src != n_src or (n_dst is not None and graph.num_dst != n_dst):
            _check_size(graph.size, n_src, n_dst)
        return Adjacency(graph)
    if not isinstance(adj, Tensor):
        if not hasattr(adj, "csr") or not hasattr(adj, "sparse_sizes"):
            return f"edge_index is a {type(adj).__name__}"
        return _from_sparse_tensor(adj, reverse, n_src, n_dst)
    if adj.layout is not torch.strided:
        return _from_torch_sparse(adj, reverse, n_src, n_dst)

    if isinstance(adj, EdgeIndex):
        size, adj = adj.sparse_size(), adj.as_tensor()
    if adj.dtype not in INDEX_DTYPES or adj.dim() != 2 or adj.size(0) != 2:
        return f"edge_index of {adj.dtype} and shape {tuple(adj.shape)}"
    if size is not None:
        _check_size(size, n_src, n_dst)
        if n_dst is None:
            n_dst = size[1]
    size = (n_src, n_src if n_dst is None else n_dst)
    return Adjacency(as_graph(adj, size, layer.flow)[0])


def _from_torch_sparse(adj, reverse, n_src, n_dst):
    if reverse:
        return "flow=target_to_source with a sparse matrix"
    if adj.requires_grad:
        return "sparse matrix that requires grad"
    if adj.layout not in LAYOUTS:
        return f"layout {adj.layout}"
    _check_size((adj.size(1), adj.size(0)), n_src, n_dst)
    graph, values = as_graph(adj)
    if values.dim() != 1:
        return "sparse matrix with vector values"
    return Adjacency(graph, values, SPARSE)


def _from_sparse_tensor(adj, reverse, n_src, n_dst):
    if reverse:
        return "flow=target_to_source with a sparse matrix"
    n_rows, n_cols = adj.sparse_sizes()
    _check_size((n_cols, n_rows), n_src, n_dst)
    graph, values = as_graph(adj)
    if values is not None and (values.requires_grad or values.dim() != 1):
        return "SparseTensor whose values require grad or are vectors"
    return Adjacency(graph, values, SPARSE_TENSOR)


def _check_size(size, n_src, n_dst):
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(
            f"size must be (number of sources, number of destinations), got {size!r}"
        )
    for expected, got in zip(size, (n_src, n_dst), strict=True):
        if expected is not None and got is not None and expected != got:
            raise ValueError(
                f"Encountered tensor with size {got} in dimension -2, "
                f"but expected size {expected}."
            )
