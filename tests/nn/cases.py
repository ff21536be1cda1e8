"""The matrix of the layer tests: constructor options x forms of the graph x dtypes."""

import torch
from torch_geometric import EdgeIndex

from gnnoffload import Graph
from gnnoffload.testing import Each

N_SRC, N_DST, N_EDGES, F_IN, F_OUT, D = 9, 6, 31, 5, 7, 3
DTYPES = [torch.float32, torch.float64, torch.bfloat16]

OPTIONS = {
    "GCNConv": [
        {},
        {"improved": True},
        {"add_self_loops": False},
        {"normalize": False},
        {"bias": False},
        {"cached": True},
        {"flow": "target_to_source"},
        {"out_channels": 3},
    ],
    "SAGEConv": [
        {},
        {"aggr": "sum"},
        {"aggr": "add", "out_channels": 3},
        {"normalize": True},
        {"root_weight": False},
        {"project": True},
        {"bias": False, "out_channels": 2},
        {"flow": "target_to_source"},
    ],
    "GINConv": [
        {},
        {"eps": 0.3},
        {"train_eps": True, "eps": -0.5},
        {"aggr": "mean"},
        {"flow": "target_to_source"},
    ],
    "GINEConv": [
        {},
        {"edge_dim": D},
        {"train_eps": True, "edge_dim": D},
        {"aggr": "mean"},
        {"flow": "target_to_source", "edge_dim": D},
    ],
    "GraphConv": [
        {},
        {"aggr": "mean"},
        {"aggr": "mean", "out_channels": 3},
        {"bias": False},
        {"flow": "target_to_source"},
    ],
    "SGConv": [
        {},
        {"K": 3},
        {"K": 2, "out_channels": 2},
        {"K": 2, "add_self_loops": False, "bias": False},
        {"K": 2, "bias": False, "out_channels": 2},
        {"K": 2, "cached": True},
        {"flow": "target_to_source"},
    ],
    "TAGConv": [
        {},
        {"K": 2, "out_channels": 2},
        {"K": 0},
        {"normalize": False},
        {"bias": False},
        {"flow": "target_to_source"},
    ],
    "ChebConv": [
        {"K": 3},
        {"K": 1},
        {"K": 2, "normalization": None},
        {"K": 4, "normalization": "rw", "bias": False},
        {"K": 4, "out_channels": 2},
        {"K": 2, "out_channels": 2},
        {"K": 3, "normalization": None, "out_channels": 2},
        {"K": 3, "flow": "target_to_source"},
        {"K": 3, "normalization": "rw", "flow": "target_to_source"},
    ],
    "APPNP": [
        {"K": 3, "alpha": 0.1},
        {"K": 2, "alpha": 0.5, "add_self_loops": False},
        {"K": 2, "alpha": 0.2, "normalize": False},
        {"K": 2, "alpha": 0.2, "cached": True},
        {"K": 2, "alpha": 0.2, "flow": "target_to_source"},
    ],
    "LGConv": [{}, {"normalize": False}, {"flow": "target_to_source"}],
    "SimpleConv": [
        {},
        {"aggr": "mean"},
        {"combine_root": "sum"},
        {"combine_root": "cat", "aggr": "mean"},
        {"combine_root": "self_loop"},
        {"combine_root": "self_loop", "aggr": "mean"},
        {"combine_root": "self_loop", "aggr": "max"},
        {"aggr": "min", "combine_root": "sum"},
        {"aggr": ["mean", "max", "std"]},
        {"flow": "target_to_source"},
    ],
    "GATConv": [
        {},
        {"heads": 3},
        {"heads": 2, "concat": False, "residual": True},
        {"heads": 2, "edge_dim": D},
        {"heads": 2, "edge_dim": D, "fill_value": "add", "residual": True},
        {"edge_dim": D, "fill_value": "max", "bias": False},
        {"edge_dim": D, "fill_value": 0.5, "add_self_loops": True},
        {"heads": 2, "edge_dim": D, "add_self_loops": False},
        {"heads": 2, "add_self_loops": False, "negative_slope": 0.5},
        {"flow": "target_to_source", "heads": 2, "edge_dim": D},
        {"out_channels": 3},
    ],
    "GATv2Conv": [
        {},
        {"heads": 3},
        {"heads": 2, "concat": False, "residual": True},
        {"heads": 2, "edge_dim": D},
        {"heads": 2, "edge_dim": 19},
        {"edge_dim": D, "fill_value": "min", "bias": False},
        {"edge_dim": D, "fill_value": 0.5, "share_weights": True},
        {"heads": 2, "edge_dim": D, "add_self_loops": False, "residual": True},
        {"heads": 2, "add_self_loops": False, "negative_slope": 0.5},
        {"flow": "target_to_source", "heads": 2, "edge_dim": D},
        {"out_channels": 3},
    ],
    "TransformerConv": [
        {},
        {"heads": 3},
        {"heads": 2, "concat": False},
        {"heads": 2, "concat": False, "beta": True},
        {"heads": 2, "edge_dim": D, "beta": True},
        {"heads": 2, "edge_dim": 19},
        {"edge_dim": D, "root_weight": False, "bias": False},
        {"flow": "target_to_source", "heads": 2, "edge_dim": D},
        {"out_channels": 3},
    ],
    "SuperGATConv": [
        {},
        {"heads": 3},
        {"heads": 2, "concat": False, "bias": False},
        {"heads": 2, "attention_type": "SD"},
        {"heads": 2, "add_self_loops": False, "negative_slope": 0.5},
    ],
}
NORMALIZING = ("GCNConv", "SGConv", "TAGConv", "APPNP", "LGConv")
SQUARE = (*NORMALIZING, "ChebConv", "SuperGATConv")  # one set of nodes
REQUIRED = {"ChebConv": {"K": 3}, "APPNP": {"K": 2, "alpha": 0.1}}
WITHOUT_WIDTHS = ("APPNP", "LGConv", "SimpleConv")
WEIGHTED = (*NORMALIZING, "ChebConv", "GraphConv", "SimpleConv")
ATTENTION = ("GATConv", "GATv2Conv", "TransformerConv", "SuperGATConv")
FORMS = ("edge_index", "edge_index32", "EdgeIndex", "Graph", "coo", "csr", "csc")


def make(module, name, options, dtype):
    """The layer `name` of `module` (torch_geometric.nn or gnnoffload.nn)."""
    options = REQUIRED.get(name, {}) | options
    width = options.pop("out_channels", F_OUT)
    cls = getattr(module, name)
    if name in WITHOUT_WIDTHS:
        return cls(**options).to(dtype)
    if name == "SuperGATConv":  # training samples edges at random
        return cls(F_IN, width, **options).to(dtype).eval()
    if name.startswith("GIN"):
        return cls(torch.nn.Linear(F_IN, width), **options).to(dtype)
    return cls(F_IN, width, **options).to(dtype)


def edges(n_src, n_dst, n_edges=N_EDGES, seed=1):
    """A random multigraph: repeated edges, self-loops, node n_dst - 1 isolated."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(n_src, (n_edges,), generator=generator)
    destination = torch.randint(n_dst - 1, (n_edges,), generator=generator)
    return torch.stack([source, destination])


def unique_edges(n_src, n_dst):
    """Without repeated edges, which a sparse matrix would sum: same pairs, sorted."""
    return torch.unique(edges(n_src, n_dst), dim=1)


def form_of(form, edge_index, size, values):
    """`edge_index` in another form; sparse forms carry `values` and have no repeats."""
    if form == "edge_index":
        return edge_index
    if form == "edge_index32":  # torch 2.13: scatter_add backward is wrong with int32
        return Each(edge_index.int(), edge_index)
    if form == "EdgeIndex":
        return EdgeIndex(edge_index, sparse_size=size)
    if form == "Graph":
        return Each(Graph(edge_index, size), edge_index)
    adj_t = torch.sparse_coo_tensor(edge_index.flip(0), values, size[::-1]).coalesce()
    return {
        "coo": adj_t,
        "csr": adj_t.to_sparse_csr(),
        "csc": adj_t.to_sparse_csc(),
    }[form]


def applicable(name, options, form, dtype):
    """Combinations that PyG itself accepts."""
    sparse = form in ("coo", "csr", "csc")
    if sparse and dtype is torch.bfloat16:
        return False  # torch.sparse.mm knows no bfloat16
    if sparse and options.get("flow"):
        return False  # PyG raises ValueError
    if form == "csc" and (name == "GINEConv" or name in ATTENTION):
        return False  # ValueError: invalid layout
    if sparse and name in ("ChebConv", "SuperGATConv"):
        return False
    loops = name.startswith("GAT") and options.get("add_self_loops", True)
    if sparse and loops and "edge_dim" in options:
        return False  # AssertionError
    if form == "csc" and name in NORMALIZING and options.get("normalize", True):
        return False  # NotImplementedError
    if form == "csc" and options.get("combine_root") == "self_loop":
        return False  # ValueError
    return True


def inputs_of(name, options, form, dtype, bipartite=False, weighted=False, seed=2):
    """(x, graph, [weight or attributes]), or None where PyG has no such call."""
    if not applicable(name, options, form, dtype):
        return None
    if bipartite and (name in SQUARE or options.get("flow")):
        return None
    if bipartite and options.get("combine_root") == "self_loop":
        return None
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.to(dtype).requires_grad_()

    sparse = form in ("coo", "csr", "csc")
    n_src = N_SRC if bipartite else N_DST
    edge_index = (unique_edges if sparse else edges)(n_src, N_DST)
    n_edges = edge_index.size(1)
    values = torch.ones(n_edges, dtype=dtype)
    if weighted:
        values = torch.rand(n_edges, generator=generator, dtype=torch.float64).to(dtype)
    x = leaf(n_src, F_IN)
    if bipartite:
        x = (x, leaf(N_DST, F_IN))
    graph = form_of(form, edge_index, (n_src, N_DST), values)
    if name == "GINEConv" or "edge_dim" in options:
        attr = leaf(n_edges, options.get("edge_dim", F_IN))
        return x, graph, attr
    linear = options.get("aggr", "sum") in ("sum", "add", "mean")
    if name == "SimpleConv" and not linear and (weighted or sparse):
        return None  # left to PyG
    if weighted and not sparse:
        return (x, graph, values.requires_grad_()) if name in WEIGHTED else None
    return x, graph
