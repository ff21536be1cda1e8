"""The cache from plain index tensors to Graphs, shared by all layers and steps."""

import collections
import warnings
import weakref


class GraphCache:
    """Finds the Graph of index tensors that have not changed since it was built.

    A tensor is recognised by its storage, held weakly, and by address, version counter,
    shape and strides; so another view of the same edges hits, and an in-place change or
    new memory at an old address misses. An entry dies with its storage, and the least
    recently used one when there are more than `capacity`. Inference tensors have no
    version counter and are not cached.

    Writes that torch does not count (`.data`, `.numpy()`) are not seen.
    """

    MISSES_IN_A_ROW = 20

    def __init__(self, capacity=32):
        self._capacity = capacity
        self._entries = collections.OrderedDict()
        self._misses = 0
        self._said = False

    def __len__(self):
        return len(self._entries)

    def clear(self):
        self._entries.clear()
        self._misses = 0

    def get(self, tensors, extra):
        """The Graph put for these tensors and `extra` (hashable), or None."""
        key = _key(tensors, extra)
        entry = self._entries.get(key) if key is not None else None
        if entry is not None and _same_storages(entry[1], tensors):
            self._misses = 0
            try:
                self._entries.move_to_end(key)
            except KeyError:  # another thread has just dropped it
                pass
            return entry[0]
        self._count_miss()
        return None

    def put(self, tensors, extra, graph):
        key = _key(tensors, extra)
        if key is None:
            return
        forget = weakref.WeakMethod(self._forget)

        def gone(_, key=key):
            method = forget()
            if method is not None:
                method(key)

        storages = [weakref.ref(t.untyped_storage(), gone) for t in tensors]
        self._entries[key] = (graph, storages)
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def _forget(self, key):
        self._entries.pop(key, None)

    def _count_miss(self):
        self._misses += 1
        if self._misses == self.MISSES_IN_A_ROW and not self._said:
            self._said = True
            warnings.warn(
                f"gnnoffload: {self._misses} edge_index tensors in a row were new, so "
                "each was sorted again; for a graph that stays the same pass one "
                "gnnoffload.Graph (for mini-batches this is expected)",
                stacklevel=4,
            )


def _key(tensors, extra):
    """Address, version, shape and strides; None where torch counts no versions."""
    try:
        if len(tensors) == 1:  # each layer call on an edge_index comes here
            return extra, _facts(tensors[0])
        return extra, *[_facts(tensor) for tensor in tensors]
    except RuntimeError:  # inference tensors
        return None


def _facts(tensor):
    shape, strides = tensor.shape, tensor.stride()
    return tensor.data_ptr(), tensor._version, shape, strides, tensor.dtype


def _same_storages(references, tensors):
    for i in range(len(tensors)):
        if references[i]() is not tensors[i].untyped_storage():
            return False
    return True
