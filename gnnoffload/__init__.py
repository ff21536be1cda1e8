"""Train graph neural networks larger and faster than GPU memory allows."""

from gnnoffload._version import __version__

__all__ = ["__version__"]
