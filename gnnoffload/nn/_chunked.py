"""The way of layers whose messages must exist: PyG's propagate, 64 MiB at a time."""

from gnnoffload import _chunk

CHUNK_BYTES = 64 << 20


def in_chunks(layer, graph, size=None, **arguments):
    """`layer.propagate(...)` as under `gnnoffload.chunk`, forward and backward."""
    if "_chunk" not in layer.__dict__:
        layer._chunk = _chunk.Settings(CHUNK_BYTES)
    if layer.flow != "source_to_target":
        graph = graph.transpose()
    return _chunk.run(layer, "propagate", graph.edge_index, size, arguments)
