"""Tools to hold our layers against PyG's: `compare` and the plugin `pyg_patch`."""

from gnnoffload.testing.compare import Each, Mismatch, compare

__all__ = ["Each", "Mismatch", "compare"]
