"""Meshes on the sphere: nodes, edges of several scales, and their geometry."""

from gnnoffload.mesh.icosphere import Icosphere, icosphere

__all__ = ["Icosphere", "icosphere"]
