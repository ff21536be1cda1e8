"""Graph: one order for every way of building it, ownership, copies, facts."""

import copy
import pickle

import pytest
import torch
from graph_cases import GRAPHS

import gnnoffload as go
from gnnoffload.graph import as_graph, as_graph_csr


def slow_csr(edges, n_dst):
    """rowptr, col, eid by Python's stable sort."""
    order = sorted(
        range(edges.shape[1]), key=lambda e: (int(edges[1, e]), int(edges[0, e]))
    )
    col = [int(edges[0, e]) for e in order]
    degree = [0] * n_dst
    for destination in edges[1].tolist():
        degree[destination] += 1
    rowptr = [0]
    for count in degree:
        rowptr.append(rowptr[-1] + count)
    return rowptr, col, order


def arrays(graph):
    eid = torch.arange(graph.num_edges) if graph.eid is None else graph.eid
    return graph.rowptr.tolist(), graph.col.tolist(), eid.tolist()


def test_order(edges_and_size):
    """Rows by (destination, source), ties by input position; the CSC likewise."""
    edges, (n_src, n_dst) = edges_and_size
    graph = go.Graph(edges, (n_src, n_dst))
    assert arrays(graph) == slow_csr(edges, n_dst)
    assert arrays(graph.transpose()) == slow_csr(edges.flip(0), n_src)
    assert torch.equal(graph.edge_index, edges.long())
    assert torch.equal(graph.transpose().edge_index, edges.flip(0).long())
    assert torch.equal(graph.degree, torch.bincount(edges[1].long(), minlength=n_dst))
    assert (graph.num_src, graph.num_dst, graph.num_edges) == (
        n_src,
        n_dst,
        edges.shape[1],
    )
    assert graph.size == (n_src, n_dst)
    assert graph.rowptr.dtype is torch.int64 and graph.col.dtype is torch.int32


def test_identity_order_is_not_stored():
    edges, size = GRAPHS["random"]
    order = torch.tensor(slow_csr(edges, size[1])[2])
    assert go.Graph(edges[:, order], size).eid is None
    assert go.Graph(edges, size).eid is not None


def forms_of(edges, size):
    """The same weighted graph in every form, each with its values in its own order."""
    n_src, n_dst = size
    weight = torch.arange(1.0, edges.shape[1] + 1)
    rowptr, col, eid = slow_csr(edges, n_dst)
    eid = torch.tensor(eid)
    rowptr, col = torch.tensor(rowptr), torch.tensor(col)
    shape = (n_dst, n_src)
    csr = torch.sparse_csr_tensor(rowptr, col, weight[eid], shape)
    colptr, row, ceid = slow_csr(edges.flip(0), n_src)
    csc = torch.sparse_csc_tensor(
        torch.tensor(colptr), torch.tensor(row), weight[torch.tensor(ceid)], shape
    )
    coo = torch.sparse_coo_tensor(edges.flip(0), weight, shape)
    forms = {
        "Graph": (go.Graph(edges, size), None, weight),
        "edge_index": (edges, size, weight),
        "int32": (edges.int(), size, weight),
        "from_csr": (go.Graph.from_csr(rowptr, col, size), None, weight[eid]),
        "sparse_csr": (csr, None, None),
        "sparse_csc": (csc, None, None),
        "sparse_coo": (coo, None, None),
    }
    try:
        from torch_geometric import EdgeIndex
    except ImportError:
        return forms
    form = EdgeIndex(edges, sparse_size=size)
    return forms | {"EdgeIndex": (form, None, weight)}


def test_every_form_reaches_the_same_bits():
    """All forms of one graph sum in one order, so floats agree to the last bit."""
    edges, size = GRAPHS["bipartite"]
    edges = torch.unique(edges, dim=1)  # torch.sparse has no ties to break
    edges = edges[:, torch.randperm(edges.shape[1], generator=torch.manual_seed(0))]
    x = torch.randn(size[0], 37)
    results = {}
    for name, (form, form_size, weight) in forms_of(edges, size).items():
        graph, value = as_graph(form, form_size)
        assert graph.size == size
        results[name] = go.spmm(graph, x, weight if value is None else value)
    for name, y in results.items():
        assert torch.equal(y, results["Graph"]), name


def test_sparse_tensor():
    """torch_sparse's SparseTensor is known by its methods, not by its import."""

    class SparseTensor:
        def csr(self):
            return torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), None

        def sparse_sizes(self):
            return 2, 3

    graph, value = as_graph(SparseTensor())
    assert value is None and graph.size == (3, 2)
    assert graph.edge_index.tolist() == [[0, 2, 1], [0, 0, 1]]


def test_flow():
    edges, (n_src, n_dst) = GRAPHS["bipartite"]
    turned = go.Graph(edges.flip(0), (n_src, n_dst), flow="target_to_source")
    assert arrays(turned) == arrays(go.Graph(edges, (n_src, n_dst)))
    with pytest.raises(ValueError, match="flow must be"):
        go.Graph(edges, flow="up")


def test_from_csr_with_unsorted_columns():
    """Columns in any order give the order of Graph; weights stay in the given order."""
    rowptr, col = torch.tensor([0, 3, 3, 5]), torch.tensor([2, 0, 1, 2, 2])
    graph = go.Graph.from_csr(rowptr, col)
    assert arrays(graph) == ([0, 3, 3, 5], [0, 1, 2, 2, 2], [1, 2, 0, 3, 4])
    assert graph.edge_index.tolist() == [[2, 0, 1, 2, 2], [0, 0, 0, 2, 2]]
    bipartite = go.Graph.from_csr(rowptr.int(), (col + 4).int(), (7, 3))
    assert bipartite.size == (7, 3)


def test_from_csr_with_strided_arrays():
    """G10: non-contiguous index arrays are valid."""
    rowptr, col = torch.tensor([0, 9, 1, 9, 2])[::2], torch.tensor([1, 9, 0])[::2]
    assert arrays(go.Graph.from_csr(rowptr, col)) == ([0, 1, 2], [1, 0], [0, 1])


def test_a_default_device_changes_nothing():
    edges, size = GRAPHS["bipartite"]
    with torch.device("meta"):
        graph = go.Graph(edges, size)
        again = go.Graph.from_csr(graph.rowptr, graph.col.long(), size)
        assert torch.equal(graph.edge_index, edges)
        ordered = go.Graph(edges % 20, reorder="rcm")
        y = go.spmm(
            graph,
            ordered.restore(torch.ones(20, 3, device="cpu"))[:1].expand(size[0], 3),
            reduce="mean",
        )
    assert arrays(again)[:2] == arrays(graph)[:2]
    assert torch.equal(y[:, 0], (graph.degree > 0).float())


def test_from_pyg():
    data_module = pytest.importorskip("torch_geometric.data")
    edges, _ = GRAPHS["random"]
    data = data_module.Data(x=torch.zeros(53, 1), edge_index=edges)
    assert arrays(go.Graph.from_pyg(data)) == arrays(go.Graph(edges, (53, 53)))


def test_it_owns_its_arrays():
    """A later change of the caller's tensors has no effect (G15)."""
    edges = GRAPHS["random"][0].clone()
    graph, before = go.Graph(edges), go.Graph(edges.clone())
    rowptr, col = graph.rowptr.clone(), graph.col.clone()
    from_csr = go.Graph.from_csr(rowptr, col.long())
    rowptr.zero_(), col.zero_(), edges.zero_()
    assert arrays(graph) == arrays(before)
    assert from_csr.rowptr.tolist() == before.rowptr.tolist()
    assert from_csr.col.tolist() == before.col.tolist()


def test_immutable():
    graph = go.Graph(GRAPHS["random"][0])
    for name in ("num_src", "rowptr", "col", "eid", "size", "edge_index", "degree"):
        with pytest.raises(AttributeError):
            setattr(graph, name, None)


@pytest.mark.parametrize("with_csc", [False, True])
@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_copies(copier, with_csc):
    graph = go.Graph(GRAPHS["bipartite"][0], GRAPHS["bipartite"][1])
    graph.args(with_csc)
    graph.cache["something"] = object()  # derived facts do not travel
    other = copier(graph)
    assert arrays(other) == arrays(graph) and other.size == graph.size
    assert arrays(other.transpose()) == arrays(graph.transpose())
    assert other.cache == {}
    assert other.col.data_ptr() != graph.col.data_ptr()


def test_to():
    graph = go.Graph(GRAPHS["random"][0])
    assert graph.to("cpu") is graph and graph.device == torch.device("cpu")
    meta = graph.to("meta")
    assert meta.device.type == "meta" and meta.rowptr.shape == graph.rowptr.shape


def test_repr():
    assert repr(go.Graph(torch.tensor([[0], [2]]))) == "Graph(3 nodes, 1 edges)"
    two_sets = go.Graph(torch.tensor([[0], [2]]), (5, 3))
    assert repr(two_sets) == "Graph(5 sources, 3 destinations, 1 edges)"


def test_csc_is_built_by_the_first_call_that_records():
    graph = go.Graph(*GRAPHS["random"])
    x = torch.randn(50, 3)
    go.spmm(graph, x)
    assert not graph._has_csc
    go.spmm(graph, x.requires_grad_())
    assert graph._has_csc


def test_as_graph_csr_is_cached():
    graph = go.Graph(*GRAPHS["random"])
    rowptr, col = graph.rowptr, graph.col.long()
    assert as_graph_csr(rowptr, col) is as_graph_csr(rowptr, col)
    assert arrays(as_graph_csr(rowptr, col))[:2] == arrays(graph)[:2]
