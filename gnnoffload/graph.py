"""Graph: the sorted, checked, owned form of an edge list, and its cache.

A Graph holds the same edges twice: by destination (CSR, used by forward) and, from the
first call that records a gradient on, by source (CSC, used by backward). Rows are
ordered by (destination, source), ties by input position, whichever way it was built,
so equal graphs sum in equal order. Edge weights stay in the caller's edge order
everywhere; `eid` maps an entry to the caller's edge.
"""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from gnnoffload import _dispatch, _graph_cuda
from gnnoffload._dispatch import call
from gnnoffload._graph_cache import GraphCache
from gnnoffload._graph_check import (
    check_edge_index,
    check_index_vector,
    check_size,
    count_nodes,
    explain_edges,
)
from gnnoffload.errors import GraphError

_graph_cuda.register()

_NO_EID = torch.empty(0, dtype=torch.int32, device="cpu")
_NO_ROWPTR = torch.empty(0, dtype=torch.int64, device="cpu")


class Graph:
    """An immutable graph with `num_src` sources and `num_dst` destinations.

    Args:
        edge_index: `[2, E]` int64 or int32, row 0 sources, row 1 destinations. Copied;
            a later change of it has no effect.
        size: `(number of sources, number of destinations)`. None: one set of nodes, as
            many as the largest index says.
        flow: "source_to_target", or "target_to_source" when row 0 holds destinations
            (`size` stays (sources, destinations)).
        reorder: None, or "degree", "rcm", "morton", "hilbert": renumber the nodes of a
            square graph for locality. Feed `graph.permute(x)`, undo with
            `graph.restore(y)`; edge weights are not affected.
        pos: `[N, D]` coordinates, for "morton" and "hilbert".

    Raises:
        GraphError: a bad index (with its position, value and limit) or shape.
        TypeError: not a dense integer tensor.

    Memory: 8 (N + 1) + 8 E bytes, 4 E less when the input already is in order; the same
    again for the CSC. On CUDA 16 bytes more for each 256 edges of a node that has more.

    >>> import torch
    >>> graph = Graph(torch.tensor([[0, 1, 2], [1, 2, 1]]))
    >>> graph
    Graph(3 nodes, 3 edges)
    """

    def __init__(
        self, edge_index, size=None, *, flow="source_to_target", reorder=None, pos=None
    ):
        check_edge_index(edge_index, "Graph")
        source, destination = split_flow(edge_index, flow)
        if size is None:
            n_nodes = count_nodes(edge_index)
            size = (n_nodes, n_nodes)
        n_src, n_dst = check_size(size)
        perm = None
        if reorder is not None:
            from gnnoffload._reorder import node_order

            if n_src != n_dst:
                raise ValueError(
                    f"Graph: reorder needs one set of nodes, got size {n_src, n_dst}"
                )
            rowptr, col, _ = _build(source.cpu(), destination.cpu(), n_src, n_dst)
            pos = None if pos is None else pos.cpu()
            perm = node_order(reorder, rowptr, col, n_src, pos).to(edge_index.device)
            rank = torch.empty_like(perm)
            rank[perm] = torch.arange(n_src, device=perm.device)
            source, destination = rank[source.long()], rank[destination.long()]
        rowptr, col, eid = _build(source, destination, n_src, n_dst)
        self._setup(rowptr, col, eid, n_dst, n_src, perm)

    def _setup(self, rowptr, col, eid, n_dst, n_src, perm=None):
        rowptr = _for_kernels(rowptr, n_dst)
        self._args = (rowptr, col, eid, _NO_ROWPTR, _NO_EID, _NO_EID, n_dst, n_src)
        self._n_src = n_src
        self._n_dst = n_dst
        self._n_edges = col.shape[0]
        self._is_cpu = rowptr.is_cpu
        self._device = rowptr.device
        self._has_csc = False
        self._perm = perm
        self._transpose = None
        self._inverse_degree = {}
        self.cache = {}

    @classmethod
    def _from_arrays(cls, rowptr, col, eid, n_dst, n_src):
        """A Graph around arrays that are already in order and belong to it."""
        graph = cls.__new__(cls)
        graph._setup(rowptr, col, eid, n_dst, n_src)
        return graph

    @classmethod
    def from_csr(cls, rowptr, col, size=None) -> "Graph":
        """The graph of a CSR matrix whose rows are destinations and columns sources.

        Args:
            rowptr: `[N + 1]`, col: `[E]`; int64 or int32, both the same. Copied.
            size: `(number of sources, number of destinations)`; None: square.
        The caller's edge order is the order of `col`.
        """
        check_index_vector(rowptr, "rowptr")
        check_index_vector(col, "col")
        if rowptr.dtype != col.dtype:
            raise TypeError(
                "Graph.from_csr: rowptr and col must have one dtype, got "
                f"{rowptr.dtype} and {col.dtype}"
            )
        n_dst = rowptr.shape[0] - 1
        if n_dst < 0:
            raise GraphError("Graph.from_csr: rowptr must have N + 1 entries, got 0")
        if size is None:
            size = (n_dst, n_dst)
        n_src, n_dst = check_size(size)
        call(_dispatch.graph_check_op, rowptr, col, n_dst, n_src)
        rowptr = rowptr.to(torch.int64)
        degree = rowptr[1:] - rowptr[:-1]
        row = torch.repeat_interleave(
            torch.arange(n_dst, dtype=col.dtype, device=col.device),
            degree,
            output_size=col.shape[0],
        )
        arrays = call(_dispatch.graph_build_op, col, row, n_src, n_dst)
        return cls._from_arrays(*_drop_identity(arrays), n_dst, n_src)

    @classmethod
    def from_pyg(cls, data) -> "Graph":
        """The graph of a PyG `Data` or `Batch`: its `adj_t` if set, else its
        `edge_index`, with `data.num_nodes` nodes."""
        n_nodes = data.num_nodes
        adjacency = getattr(data, "adj_t", None)
        form = data.edge_index if adjacency is None else adjacency
        if form is None:
            raise GraphError("Graph.from_pyg: data has neither edge_index nor adj_t")
        return as_graph(form, (n_nodes, n_nodes))[0]

    @classmethod
    def from_dgl(cls, g, etype=None) -> "Graph":
        """The graph of a DGL graph or block; edge weights keep DGL's edge order.

        Args:
            g: anything with DGL's `edges(order="eid", etype=...)`, `num_src_nodes`,
                `num_dst_nodes`, `canonical_etypes` and `to_canonical_etype`.
            etype: which relation of a heterogeneous graph; None: its only one.

        `docs/from_dgl.md` says which op of ours stands for which of DGL's.
        """
        relations = g.canonical_etypes
        if etype is None and len(relations) != 1:
            raise GraphError(
                f"Graph.from_dgl: g has {len(relations)} edge types, name one: "
                + ", ".join(map(str, relations))
            )
        relation = relations[0] if etype is None else g.to_canonical_etype(etype)
        edges = torch.stack(g.edges(order="eid", etype=relation))
        size = g.num_src_nodes(relation[0]), g.num_dst_nodes(relation[2])
        return cls(edges, size)

    # --------------------------------------------------------------------------- facts

    @property
    def num_src(self) -> int:
        """Number of sources."""
        return self._n_src

    @property
    def num_dst(self) -> int:
        """Number of destinations."""
        return self._n_dst

    @property
    def num_edges(self) -> int:
        return self._n_edges

    @property
    def size(self) -> tuple[int, int]:
        """(number of sources, number of destinations)"""
        return self._n_src, self._n_dst

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def rowptr(self) -> Tensor:
        """`[num_dst + 1]` int64. The graph's own array: do not write to it."""
        rowptr = self._args[0]  # with the parts of heavy rows behind it, on CUDA
        n = self._n_dst + 1
        return rowptr if rowptr.shape[0] == n else rowptr[:n]

    @property
    def col(self) -> Tensor:
        """`[E]` int32, sources in row order. The graph's own array."""
        return self._args[1]

    @property
    def eid(self) -> Tensor | None:
        """`[E]` entry -> edge in the caller's order; None when they are the same."""
        return self._args[2] if self._args[2].numel() else None

    @property
    def degree(self) -> Tensor:
        """`[num_dst]` int64: edges into each destination."""
        if "degree" not in self.cache:
            self.cache["degree"] = self.rowptr[1:] - self.rowptr[:-1]
        return self.cache["degree"]

    @property
    def edge_index(self) -> Tensor:
        """`[2, E]` int64 in the caller's edge order (made anew by each call)."""
        _, col, eid, *_ = self._args
        row = torch.repeat_interleave(
            torch.arange(self._n_dst, device=self.device),
            self.degree,
            output_size=self._n_edges,
        )
        by_row = torch.stack((col.long(), row))
        if eid.numel() == 0:
            return by_row
        out = torch.empty_like(by_row)
        out[:, eid.long()] = by_row
        return out

    def inverse_degree(self, dtype) -> Tensor:
        """`[num_dst]` 1 / degree in `dtype`, 0 where the degree is 0. Cached."""
        scale = self._inverse_degree.get(dtype)
        if scale is None:
            rowptr = self.rowptr
            degree = rowptr[1:] - rowptr[:-1]
            scale = torch.where(degree > 0, 1.0 / degree.to(torch.float64), 0.0)
            scale = self._inverse_degree[dtype] = scale.to(dtype)
        return scale

    # --------------------------------------------------------------------- other forms

    def args(self, with_csc=False) -> _dispatch.GraphArgs:
        """The eight arguments every op takes; with the CSC built when asked for."""
        if with_csc and not self._has_csc:
            csr = self._args[:3]
            colptr, row, ceid = call(
                _dispatch.graph_transpose_op, self.rowptr, *csr[1:], self._n_src
            )
            colptr = _for_kernels(colptr, self._n_src)
            self._args = (*csr, colptr, row, ceid, self._n_dst, self._n_src)
            self._has_csc = True
        return self._args

    def transpose(self) -> "Graph":
        """The graph with sources and destinations exchanged, sharing this one's arrays.
        Cached."""
        if self._transpose is None:
            args = _dispatch.transposed(self.args(with_csc=True))
            back = Graph.__new__(Graph)
            back._setup(*args[:3], self._n_src, self._n_dst, self._perm)
            back._args = args
            back._has_csc = True
            self._transpose = back
        return self._transpose

    def permute(self, x: Tensor) -> Tensor:
        """Rows of x `[N, ...]` in the order of a `reorder=`ed graph."""
        return x if self._perm is None else x[self._perm]

    def restore(self, y: Tensor) -> Tensor:
        """Undoes `permute`."""
        if self._perm is None:
            return y
        rank = torch.empty_like(self._perm)
        rank[self._perm] = torch.arange(self._n_src, device=self.device)
        return y[rank]

    @property
    def perm(self) -> Tensor | None:
        """`[N]` new position -> original node, None without `reorder`."""
        return self._perm

    def _map(self, function) -> "Graph":
        state = self.__getstate__()
        state["_args"] = tuple(
            function(item) if isinstance(item, Tensor) else item for item in self._args
        )
        state["_perm"] = None if self._perm is None else function(self._perm)
        other = Graph.__new__(Graph)
        other.__setstate__(state)
        return other

    def to(self, device) -> "Graph":
        """This graph on `device` (itself when it is there already)."""
        device = torch.device(device)
        if device == self.device:
            return self
        return self._map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> "Graph":
        """A copy of this graph in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def __getstate__(self):
        state = dict(self.__dict__)
        state.update(cache={}, _inverse_degree={}, _transpose=None)
        return state

    def __setstate__(self, state):
        self.__dict__.update(
            state
        )  # whose tensors may be on another device than before
        rowptr, col, eid, colptr, *rest = self._args
        rowptr = _for_kernels(rowptr, self._n_dst)
        if self._has_csc:
            colptr = _for_kernels(colptr, self._n_src)
        self._args = (rowptr, col, eid, colptr, *rest)
        self._device, self._is_cpu = rowptr.device, rowptr.is_cpu

    def __repr__(self):
        if self._n_src == self._n_dst:
            nodes = f"{self._n_dst} nodes"
        else:
            nodes = f"{self._n_src} sources, {self._n_dst} destinations"
        device = "" if self.device.type == "cpu" else f", {self.device}"
        return f"Graph({nodes}, {self._n_edges} edges{device})"


def split_flow(edge_index, flow):
    """(sources, destinations) of an edge_index under PyG's `flow`."""
    if flow == "source_to_target":
        return edge_index[0], edge_index[1]
    if flow == "target_to_source":
        return edge_index[1], edge_index[0]
    raise ValueError(
        f"flow must be 'source_to_target' or 'target_to_source', got {flow!r}"
    )


def _for_kernels(rowptr, n_rows):
    """rowptr `[n_rows + 1]` as the kernels of its device want it: on CUDA followed by
    the parts of heavy rows, see `_graph_cuda.split_rows`."""
    if rowptr.is_cuda and rowptr.shape[0] == n_rows + 1 and not is_compiling():
        return _graph_cuda.split_rows(rowptr)
    return rowptr


def _drop_identity(arrays):
    """rowptr, col, eid of graph_build's outputs; an identity eid becomes empty."""
    rowptr, col, eid, is_sorted = arrays
    return rowptr, col, (_NO_EID if is_sorted.item() else eid)


def _build(source, destination, n_src, n_dst):
    try:
        arrays = call(_dispatch.graph_build_op, source, destination, n_src, n_dst)
    except GraphError as error:
        raise explain_edges(error, source, destination, n_src, n_dst) from None
    return _drop_identity(arrays)


# ---------------------------------------------------------------- every input form

_cache = GraphCache()


def as_graph(edge_index, size=None, flow="source_to_target"):
    """(Graph, edge values or None) of any form in which a layer is given its edges.

    Args:
        edge_index: a `Graph`; a plain `[2, E]` tensor (cached, see `GraphCache`); PyG's
            `EdgeIndex`; a torch.sparse COO, CSR or CSC matrix or a `SparseTensor`,
            whose rows are destinations as in PyG's `adj_t`.
        size: `(number of sources, number of destinations)`, or None: what the form
            itself says, else one set of nodes counted from the indices.
        flow: PyG's; for plain edge lists only.

    Under torch.compile a plain tensor is built by ops in the graph, uncached and with
    its CSC; an unused half is dead code there.
    """
    if type(edge_index) is Graph:
        return edge_index, None
    if type(edge_index) is Tensor and edge_index.layout is torch.strided:
        return _plain_graph(edge_index, size, flow), None
    return _other_form(edge_index, size, flow)


def as_graph_csr(rowptr, col, size=None) -> Graph:
    """`Graph.from_csr` through the cache."""
    key = ("csr", size if size is None else tuple(size))
    graph = _cache.get((rowptr, col), key)
    if graph is None:
        graph = Graph.from_csr(rowptr, col, size)
        _cache.put((rowptr, col), key, graph)
    return graph


def _plain_graph(edge_index, size, flow):
    if is_compiling():
        return _compiled_graph(edge_index, size, flow)
    return _cached_graph(edge_index, size, flow)


def _cached_graph(edge_index, size, flow):
    key = (size if size is None else tuple(size), flow)
    graph = _cache.get((edge_index,), key)
    if graph is None:
        graph = Graph(edge_index, size, flow=flow)
        _cache.put((edge_index,), key, graph)
    return graph


def _compiled_graph(edge_index, size, flow):
    if size is None:
        raise ValueError(
            "a plain edge_index under torch.compile needs size=(sources, destinations)"
        )
    source, destination = split_flow(edge_index, flow)
    n_src, n_dst = size
    rowptr, col, eid, _ = _dispatch.graph_build_op(source, destination, n_src, n_dst)
    graph = Graph.__new__(Graph)
    graph._setup(rowptr, col, eid, n_dst, n_src)
    return graph


def _other_form(form, size, flow):
    if not isinstance(form, Tensor):
        if hasattr(form, "csr") and hasattr(form, "sparse_sizes"):  # SparseTensor
            rowptr, col, value = form.csr()
            n_dst, n_src = form.sparse_sizes()
            return as_graph_csr(rowptr, col, (n_src, n_dst)), value
        raise TypeError(
            "edge_index must be a Graph, a tensor or a SparseTensor, got "
            f"{type(form).__name__}"
        )
    if form.layout is torch.sparse_csr:
        n_dst, n_src = form.shape
        rowptr, col = form.crow_indices(), form.col_indices()
        return as_graph_csr(rowptr, col, (n_src, n_dst)), form.values()
    if form.layout is torch.sparse_csc:
        n_dst, n_src = form.shape
        colptr, row = form.ccol_indices(), form.row_indices()
        return as_graph_csr(colptr, row, (n_dst, n_src)).transpose(), form.values()
    if form.layout is torch.sparse_coo:
        n_dst, n_src = form.shape
        edges = form._indices()
        graph = _cached_graph(edges, (n_src, n_dst), "target_to_source")
        return graph, form._values()
    if hasattr(form, "as_tensor") and hasattr(form, "sparse_size"):  # EdgeIndex
        if size is None and None not in form.sparse_size():
            size = form.sparse_size()
        return as_graph(form.as_tensor(), size, flow)
    if form.layout is torch.strided:  # a subclass that adds nothing, or a fake tensor
        return _plain_graph(form, size, flow), None
    raise TypeError(f"edge_index of layout {form.layout} is not supported")
