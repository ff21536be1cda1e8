"""Drop-in graph layers: PyG's names, arguments and state_dict on fused message passing.

`from gnnoffload.nn import GCNConv` needs torch_geometric; `InteractionNetwork` and
`GraphTransformerConv` need torch alone, so the layers are imported when first asked
for.
"""

import importlib

PYG_LAYERS = {
    "APPNP": "appnp",
    "CGConv": "cg_conv",
    "ChebConv": "cheb_conv",
    "EdgeConv": "edge_conv",
    "GATConv": "gat_conv",
    "GATv2Conv": "gatv2_conv",
    "GCNConv": "gcn_conv",
    "GENConv": "gen_conv",
    "GINConv": "gin_conv",
    "GINEConv": "gine_conv",
    "GraphConv": "graph_conv",
    "LGConv": "lg_conv",
    "PNAConv": "pna_conv",
    "ResGatedGraphConv": "res_gated_graph_conv",
    "SAGEConv": "sage_conv",
    "SGConv": "sg_conv",
    "SimpleConv": "simple_conv",
    "SuperGATConv": "supergat_conv",
    "TAGConv": "tag_conv",
    "TransformerConv": "transformer_conv",
}
OWN_LAYERS = {
    "GraphTransformerConv": "graph_transformer_conv",
    "InteractionNetwork": "interaction_network",
}
__all__ = [
    "APPNP",
    "CGConv",
    "ChebConv",
    "EdgeConv",
    "GATConv",
    "GATv2Conv",
    "GCNConv",
    "GENConv",
    "GINConv",
    "GINEConv",
    "GraphConv",
    "GraphTransformerConv",
    "InteractionNetwork",
    "LGConv",
    "PNAConv",
    "ResGatedGraphConv",
    "SAGEConv",
    "SGConv",
    "SimpleConv",
    "SuperGATConv",
    "TAGConv",
    "TransformerConv",
]


def __getattr__(name):
    module = PYG_LAYERS.get(name) or OWN_LAYERS.get(name)
    if module is None:
        raise AttributeError(f"module 'gnnoffload.nn' has no attribute '{name}'")
    if name in PYG_LAYERS:
        require_pyg(f"gnnoffload.nn.{name}")
    value = getattr(importlib.import_module(f"gnnoffload.nn.{module}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def require_pyg(what):
    """Raises an ImportError that says how to install torch_geometric if absent."""
    try:
        importlib.import_module("torch_geometric")
    except ImportError as error:
        raise ImportError(
            f"{what} needs torch_geometric: pip install gnnoffload[pyg]"
        ) from error
