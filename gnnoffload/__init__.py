"""Train graph neural networks larger and faster than GPU memory allows."""

from gnnoffload import graph, ops, reference
from gnnoffload._version import __version__
from gnnoffload.errors import DeviceError, GraphError, OffloadError, SpillError
from gnnoffload.graph import Graph
from gnnoffload.ops import sddmm, spmm

__all__ = [
    "DeviceError",
    "Graph",
    "GraphError",
    "OffloadError",
    "SpillError",
    "__version__",
    "graph",
    "ops",
    "reference",
    "sddmm",
    "spmm",
]
