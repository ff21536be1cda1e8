"""Train graph neural networks larger and faster than GPU memory allows."""

import gnnoffload._platform  # noqa: F401 first: it says why the rest cannot load
from gnnoffload import attention, config, graph, nn, ops, reference
from gnnoffload._chunk import chunk
from gnnoffload._convert import conversion_report, convert, revert
from gnnoffload._offload import keep, offload
from gnnoffload._version import __version__
from gnnoffload.attention import dot_attention, edge_softmax, gat, gatv2
from gnnoffload.config import show_config
from gnnoffload.errors import DeviceError, GraphError, OffloadError, SpillError
from gnnoffload.gates import gated
from gnnoffload.graph import Graph
from gnnoffload.messages import gather, segment
from gnnoffload.ops import gine, sddmm, spmm
from gnnoffload.reductions import aggregate, softmax_aggregate

__all__ = [
    "DeviceError",
    "Graph",
    "GraphError",
    "OffloadError",
    "SpillError",
    "__version__",
    "aggregate",
    "attention",
    "chunk",
    "config",
    "conversion_report",
    "convert",
    "dot_attention",
    "edge_softmax",
    "gat",
    "gated",
    "gather",
    "gatv2",
    "gine",
    "graph",
    "keep",
    "nn",
    "offload",
    "ops",
    "reference",
    "revert",
    "sddmm",
    "segment",
    "show_config",
    "softmax_aggregate",
    "spmm",
]
