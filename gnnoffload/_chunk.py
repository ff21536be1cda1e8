"""chunk: any message passing layer of PyG's, its messages never larger than a bound.

The layer's class becomes a subclass of itself whose `propagate` and `edge_updater` run
over ranges of destinations: gather what message() asks for, message(), aggregate(), and
the rows are done. Each range is a checkpoint: backward runs it again. Everything else,
forward() and update() included, is the layer's own.
"""

import re
import warnings

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from gnnoffload import _fallback
from gnnoffload._ranges import DST, EDGE, SRC, Parts, Range, bounds, in_callers_order
from gnnoffload._ranges import ranges as ranges_of
from gnnoffload.graph import as_graph

_HIDDEN = 64  # bytes an edge that kernels take for themselves: scatter's sort
_PROBE = 4096  # edges on which the bytes of a message are measured
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_UNITS |= {f"{k}i": 1 << 10 * n for n, k in enumerate("KMG", 1)}
_classes = {}  # a layer's class -> its chunked subclass
_ACROSS_EDGES = (
    *("DiffGroupNorm", "GraphNorm", "GraphSizeNorm", "HeteroBatchNorm"),
    *("MeanSubtractionNorm", "PairNorm"),
)  # PyG's norms whose statistics run over rows, next to torch's _NormBase


def chunk(conv, bytes="256MiB"):
    """Bounds the memory of a PyG layer's messages, whatever its message() does.

    The layer runs over ranges of destinations, so that what a range makes (gathered
    rows, messages, all that autograd saves, and gradients of these) stays below
    `bytes`; backward runs each range again. Outputs and all gradients are those of the
    layer as it was, parameters included. Where everything fits, the layer runs as
    before, without a second pass; so do layers that make no messages (fused ones).

        conv = gnnoffload.chunk(GATConv(64, 64, heads=8, edge_dim=16), "512MiB")

    Args:
        conv: a `torch_geometric.nn.MessagePassing`, PyG's, ours or your own. Changed in
            place: its class becomes a subclass of itself with the same name, so
            parameters, state_dict, repr and isinstance stay as they are; it can be
            copied and pickled.
        bytes: the bound; a number, or text such as "256MiB", "1GB". None: gives `conv`
            its own class back.

    Returns:
        `conv`

    Raises:
        TypeError: not a `MessagePassing`.
        ValueError: a bound that is none. When called: message() runs a BatchNorm (or
            another norm over all edges) in training mode, or leaves on the layer a
            tensor that is not one row an edge; aggregate() returns something else than
            one row a destination.

    What is cut: arguments of message(), aggregate() and edge_update() that end in _i or
    _j are gathered for each range, and tensors with one row an edge (as many rows as
    edge_index has columns) are split; anything else is passed whole. Destinations are
    numbered from the start of the range (`index`, `edge_index_i`, `dim_size`, `size_i`,
    `ptr` is None), sources as ever. Edges stand in the caller's order, sorted by range.
    Attention weights that message() leaves on the layer are put together again.

    Numerics: a destination's messages are reduced by the layer's own code in the order
    they had: the same bits where message() computes each row by itself, to rounding
    where it multiplies matrices. Gradients of what ranges share (sources, parameters)
    are sums over ranges, in order: the same for any number of threads if the layer's
    code is so. Dropout in message() draws for each range, so its mask is not that of
    the layer as it was; the second pass draws what the first drew.

    Memory: the bound is kept by measuring: the bytes of all tensors that a small range
    makes, doubled for their gradients, over its edges (once for each shape of the
    arguments). A destination with more edges than fit is a range of its own and exceeds
    the bound; the first such warns. Outside the bound stand inputs, the output, their
    gradients, per-edge tensors that the layer's forward() itself makes or returns, and
    about 8 bytes an edge kept with the graph (20 when backward ran). A layer that makes
    a new edge_index at each call (self-loops) is sorted anew at each call.

    Falls back to the whole layer, with a note in the ledger of fallbacks, for sparse
    matrices, hooks, explain, decomposed_layers, static graphs, torch.compile and
    torch.func.
    """
    from torch_geometric.nn import MessagePassing

    if not isinstance(conv, MessagePassing):
        raise TypeError(
            f"chunk: conv must be a MessagePassing layer, got {type(conv).__name__}"
        )
    limit = None if bytes is None else _bytes(bytes)
    base = getattr(type(conv), "_chunk_base", type(conv))
    conv.__dict__.pop("_chunk", None)
    conv.__class__ = base
    if limit is not None:
        conv.__class__ = _class(base)
        conv._chunk = Settings(limit)
    return conv


def _bytes(text):
    """The number of bytes that "256MiB" names."""
    if isinstance(text, str):
        found = re.fullmatch(r"\s*([\d.]+)\s*([KMG]i?|)B?\s*", text)
        number = float(found[1]) * _UNITS[found[2]] if found else 0
    else:
        number = text if isinstance(text, int) else 0
    if number < 1:
        raise ValueError(
            f"chunk: bytes must be a positive number or text such as '256MiB', "
            f"got {text!r}"
        )
    return int(number)


class Settings:
    """What a chunked layer knows besides itself."""

    def __init__(self, limit):
        self.limit = limit
        self.cost = {}  # shapes of a call -> bytes an edge
        self.warned = False


def _class(base):
    """The subclass of `base` that runs in ranges."""
    cls = _classes.get(base)
    if cls is None:

        def propagate(self, edge_index, size=None, **kwargs):
            return run(self, "propagate", edge_index, size, kwargs)

        def edge_updater(self, edge_index, size=None, **kwargs):
            return run(self, "edge_updater", edge_index, size, kwargs)

        def __reduce_ex__(self, protocol):
            return _empty, (base,), self.__dict__

        body = {"_chunk_base": base, "__reduce_ex__": __reduce_ex__}
        body |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
        body["__doc__"] = base.__doc__
        for function in (propagate, edge_updater):  # PyG may put back either
            name = function.__name__
            body |= {name: function, f"_orig_{name}": function}
            body[f"_jinja_{name}"] = function
        propagate.cuts_messages = True
        cls = _classes[base] = type(base.__name__, (base,), body)
    return cls


def _empty(base):
    cls = _class(base)
    return cls.__new__(cls)


# ---------------------------------------------------------------------------- one call


def run(conv, entry, edge_index, size, kwargs):
    """propagate or edge_updater of a layer that has its `Settings` as `_chunk`."""
    call = Call(conv, entry, kwargs)
    reason = _reason(conv, edge_index) or call.reason(edge_index, size)
    if not reason:
        most = call.edges_that_fit()
        reason = None if most < edge_index.shape[1] else "nothing to cut"
    if reason:
        if reason != "nothing to cut":
            _fallback.note(f"chunk({type(conv).__name__})", reason)
        base = getattr(type(conv), "_chunk_base", type(conv))
        whole = conv.explain or conv.decomposed_layers > 1
        function = getattr(base, f"_orig_{entry}" if whole else entry)
        return function(conv, edge_index, size=size, **kwargs)
    result = call.over_ranges(most)
    if entry == "edge_updater":
        return result
    return conv.update(result, **call.update_arguments())


def _reason(conv, edge_index):
    """Why the layer must run whole; None if it need not."""
    if not isinstance(edge_index, Tensor) or edge_index.layout is not torch.strided:
        return "a sparse matrix"
    if conv.explain:
        return "explain"
    if conv.decomposed_layers != 1:
        return f"decomposed_layers={conv.decomposed_layers}"
    if any(hooks for name, hooks in conv.__dict__.items() if _is_hooks(name)):
        return "message passing hooks"
    if torch.compiler.is_compiling():
        return "torch.compile"
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    if torch._C._functorch.maybe_current_level() is not None:
        return "torch.func transform"
    return None


def _is_hooks(name):
    starts = ("_propagate_f", "_message_", "_aggregate_f", "_edge_update_f")
    return name.startswith(starts) and name.endswith("_hooks")


class Call:
    """The arguments of one call of propagate or edge_updater. The autograd graph keeps
    it, for backward: it must not keep what that graph belongs to."""

    def __init__(self, conv, entry, kwargs):
        self.conv, self.kwargs = conv, kwargs
        self.functions = (
            ["message", "aggregate"] if entry == "propagate" else ["edge_update"]
        )
        special = conv.special_args
        names = conv.inspector.get_flat_param_names(self.functions, exclude=special)
        self.lifted = [n for n in names if n[-2:] in ("_i", "_j")]
        self.plain = [n for n in names if n not in self.lifted]
        self.per_edge = entry != "propagate"

    def reason(self, edge_index, size):
        """Why this call cannot be cut, or None: then all is ready for it."""
        conv = self.conv
        if not self.per_edge:
            names = conv.inspector.get_param_names("update")
            asked = [n for n in names if n[-2:] in ("_i", "_j") or n in _EDGE_ARGS]
            if asked:
                return f"update() asks for {asked[0]}"
        source_to_target = conv.flow == "source_to_target"
        self.i, self.j = (1, 0) if source_to_target else (0, 1)
        self.edge_index = edge_index = _plain(edge_index)
        self.size = size = conv._check_input(edge_index, size)
        none = edge_index[:, :0]
        conv._collect(self.lifted, none, size, self.kwargs)  # fills in the size
        n_dst = size[self.i] if size[self.i] is not None else size[self.j]
        n_src = size[self.j] if size[self.j] is not None else size[self.i]
        if n_dst is None or edge_index.shape[1] == 0:
            return "nothing to cut"
        reason = self._find_rows(edge_index.shape[1])
        if reason:
            return reason
        self.graph, _ = as_graph(edge_index, (n_src, n_dst), conv.flow)
        self.ends = edge_index[self.j], edge_index[self.i]
        return None

    def _find_rows(self, n_edges):
        """Which argument's rows are whose; a reason where none can tell."""
        conv, self.rows, self.whole = self.conv, {}, {}
        for name in self.lifted:
            data = self.kwargs.get(name[:-2])
            if isinstance(data, (tuple, list)):  # as PyG, for either flow
                data = data[0 if name[-1] == "j" else 1]
            if not isinstance(data, Tensor):
                self.whole[name] = data
            elif conv.node_dim not in (0, -data.dim()):
                return f"{name[:-2]} has {data.dim()} dimensions (static graph)"
            else:
                self.rows[name] = (data, DST if name[-1] == "i" else SRC)
        for name in self.plain:
            if name not in self.kwargs:
                continue
            data = self.kwargs[name]
            if isinstance(data, Tensor) and data.dim() and data.shape[0] == n_edges:
                self.rows[name] = (data, EDGE)
            else:
                self.whole[name] = data
        return None

    def update_arguments(self):
        """What update() takes besides the aggregate: no argument of these is cut."""
        size = self.size
        special = {"size": size, "adj_t": None, "edge_index": self.edge_index}
        special["dim_size"] = special["size_i"] = size[self.i] or size[self.j]
        special["size_j"] = size[self.j] or size[self.i]
        return self.conv.inspector.collect_param_data("update", special | self.kwargs)

    # -------------------------------------------------------------------------- bytes

    def edges_that_fit(self):
        """The most edges of a range, from the bytes of an edge: measured on a small
        range, once for these shapes."""
        conv, settings = self.conv, self.conv._chunk
        shapes = tuple((n, d.dtype, d.shape[1:]) for n, (d, _) in self.rows.items())
        key = (*self.functions, conv.training, torch.is_grad_enabled(), shapes)
        if key not in settings.cost:
            row = sum(_row_bytes(data) for data, _ in self.rows.values())
            most = min(_PROBE, max(1, settings.limit // (16 * (row + _HIDDEN))))
            part = _probe_range(self.graph, most)
            device = self.graph.device
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices), CountBytes() as counted:
                self._range(part, self._parts())
            n = part.n_edges
            made = counted.bytes * (2 if torch.is_grad_enabled() else 1)
            settings.cost[key] = -(-made // n) + _HIDDEN
        return max(1, settings.limit // settings.cost[key])

    # ------------------------------------------------------------------------- ranges

    def _parts(self):
        made = {}  # one for each tensor and role: x_i and x_j of one x are two
        for data, what in self.rows.values():
            if (id(data), what) not in made:
                made[id(data), what] = Parts(data, what)
        return {n: made[id(d), what] for n, (d, what) in self.rows.items()}

    def over_ranges(self, most):
        """What aggregate() or edge_update() makes of all edges, range by range."""
        parts, ranges = self._parts(), ranges_of(self.graph, most)
        outputs, left = [], []
        watched = [_watch(m, self.conv) for m in self.conv.modules() if _crosses(m)]
        try:
            for part in ranges:
                if part.n_edges > most:
                    self._warn(part, most)
                # the device of the generators is found among a checkpoint's arguments
                out, stash = checkpoint(
                    self._range, part, parts, self.ends[0], use_reentrant=False
                )
                outputs.append(out)
                left.append(stash)
        finally:
            for handle in watched:
                handle.remove()
        self._put_together(left, ranges)
        if not self.per_edge:
            return torch.cat(outputs)
        if isinstance(outputs[0], Tensor):
            return in_callers_order(outputs, ranges)
        return tuple(
            in_callers_order(pieces, ranges) for pieces in zip(*outputs, strict=True)
        )

    def _range(self, part, parts, _device=None):
        """(what the range's rows become, {name: tensor} that message() left)."""
        conv = self.conv
        source, destination = part.ends(*self.ends)
        index = {SRC: source, DST: destination, EDGE: None}
        given = dict(self.whole)
        for name, rows in parts.items():
            given[name] = rows.take(part, index[rows.what], self.ends)
        size = list(self.size)
        n_rows = size[self.i] = part.end - part.begin
        pair = (source, destination) if self.j == 0 else (destination, source)
        given.update(
            edge_index_i=destination,
            edge_index_j=source,
            index=destination,
            edge_index=torch.stack(pair),
            ptr=None,
            adj_t=None,
            size=size,
            size_i=n_rows,
            dim_size=n_rows,
            size_j=size[self.j] if size[self.j] is not None else n_rows,
        )
        before = dict(conv.__dict__)
        try:
            out = None
            for function in self.functions:
                arguments = conv.inspector.collect_param_data(function, given)
                call = getattr(conv, function)
                out = (
                    call(out, **arguments)
                    if function == "aggregate"
                    else call(**arguments)
                )
            stash = {
                name: value
                for name, value in conv.__dict__.items()
                if isinstance(value, Tensor) and value is not before.get(name)
            }
        finally:
            _restore(conv, before)
        self._check(out, part)
        return out, stash

    # ------------------------------------------------------------------------- results

    def _check(self, out, part):
        pieces = out if self.per_edge and isinstance(out, tuple) else (out,)
        n = part.n_edges if self.per_edge else part.end - part.begin
        for piece in pieces:
            if not isinstance(piece, Tensor) or piece.dim() == 0 or len(piece) != n:
                what = "edge" if self.per_edge else "destination"
                got = tuple(piece.shape) if isinstance(piece, Tensor) else type(piece)
                raise ValueError(
                    f"chunk: {self.functions[-1]}() of {type(self.conv).__name__} must "
                    f"return one row per {what} ({n}), got {got}"
                )

    def _put_together(self, left, ranges):
        for name in left[0]:
            pieces = [stash.get(name) for stash in left]
            for piece, part in zip(pieces, ranges, strict=True):
                if piece is None or piece.dim() == 0 or len(piece) != part.n_edges:
                    raise ValueError(
                        f"chunk: message() of {type(self.conv).__name__} leaves "
                        f"{name!r} on the layer, which is not one row per edge"
                    )
            setattr(self.conv, name, in_callers_order(pieces, ranges))

    def _warn(self, part, most):
        settings = self.conv._chunk
        if not settings.warned:
            settings.warned = True
            warnings.warn(
                f"chunk({type(self.conv).__name__}): destination {part.begin} has "
                f"{part.n_edges} edges, {most} fit in {settings.limit} bytes; it runs "
                "alone, above the bound (told once)",
                RuntimeWarning,
                stacklevel=2,
            )


_EDGE_ARGS = ("edge_index_i", "edge_index_j", "index", "ptr")


def _plain(edge_index):
    return edge_index.as_tensor() if hasattr(edge_index, "as_tensor") else edge_index


def _row_bytes(data):
    return data[:1].numel() * data.element_size()


def _probe_range(graph, most):
    """The fullest of the first ranges of at most `most` edges."""
    best = None
    for n, bound in enumerate(bounds(graph, most)):
        edges = bound[3] - bound[2]
        fits = 0 < edges <= most
        if fits and (best is None or edges > best[3] - best[2]):
            best = bound
        if n > 64 and best is not None:
            break
    if best is None:  # every row is larger
        best = min(
            (b for b in bounds(graph, most) if b[3] > b[2]), key=lambda b: b[3] - b[2]
        )
    return Range(graph, *best)


def _restore(conv, before):
    """Tensors that message() left on the layer, taken off again."""
    own = conv.__dict__
    for name, value in list(own.items()):
        if isinstance(value, Tensor) and value is not before.get(name):
            if name in before:
                own[name] = before[name]
            else:
                del own[name]


def _crosses(module):
    """Whether a norm's statistics run over the rows of its input."""
    if isinstance(module, _NormBase):
        return module.training or not module.track_running_stats
    name = type(module).__name__
    return name in _ACROSS_EDGES or (
        name == "LayerNorm" and getattr(module, "mode", "node") == "graph"
    )


def _watch(module, conv):
    def refuse(module, inputs):
        raise ValueError(
            f"chunk: message() of {type(conv).__name__} runs {type(module).__name__}, "
            "whose statistics need all messages at once: use eval(), or LayerNorm"
        )

    return module.register_forward_pre_hook(refuse)


class CountBytes(TorchDispatchMode):
    """Adds up the bytes of every new storage that an op returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if _is_dense(t)}
        for tensor in tree_leaves(out):
            if _is_dense(tensor) and _storage(tensor) not in given:
                given.add(_storage(tensor))
                self.bytes += tensor.untyped_storage().nbytes()
        return out


def _storage(tensor):
    return tensor.untyped_storage()._cdata


def _is_dense(tensor):
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided
