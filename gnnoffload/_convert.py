"""convert: PyG's layers in a model become ours by a change of class, and back.

A layer is swapped only if its class is exactly PyG's: a subclass of a user's may depend
on anything. Weights, buffers, hooks and state_dict stay the very same objects.
"""

from typing import NamedTuple

from torch import nn

from gnnoffload.nn import PYG_LAYERS, require_pyg

SWAPPED, KEPT, READY = "swapped", "kept", "not converted yet"


class Entry(NamedTuple):
    """One message passing layer of a model."""

    name: str  # as in model.named_modules(); "" is the model itself
    layer: str  # class name
    status: str  # "swapped", "kept" or "not converted yet"
    reason: str  # why kept, or what a swapped layer still leaves to PyG; may be empty


class ConversionReport:
    """What `convert` did to each message passing layer of a model, and why.

    `entries` has one Entry a layer; `swapped` and `kept` are its two halves (a layer
    that could be swapped but is not yet counts as kept); `to_dict()` is plain data.
    """

    def __init__(self, entries):
        self.entries = tuple(entries)
        self.swapped = tuple(e for e in self.entries if e.status == SWAPPED)
        self.kept = tuple(e for e in self.entries if e.status != SWAPPED)

    def to_dict(self):
        return {"layers": [entry._asdict() for entry in self.entries]}

    def __repr__(self):
        if not self.entries:
            return "conversion report: no message passing layers"
        lines = [
            f"conversion report: {len(self.swapped)} of {len(self.entries)} "
            "message passing layers swapped"
        ]
        width = max(len(e.name or "(model)") for e in self.entries)
        for e in self.entries:
            reason = f": {e.reason}" if e.reason else ""
            name = e.name or "(model)"
            lines.append(f"  {name:<{width}}  {e.layer:<14} {e.status}{reason}")
        return "\n".join(lines)


def convert(model):
    """Gives every PyG layer of `model` with a fused counterpart its class, in place.

    Args
    ----
    model : nn.Module, itself a layer or with layers anywhere below it

    Returns
    -------
    the same model. `conversion_report(model)` says what happened, `revert` undoes it.

    Raises
    ------
    TypeError if `model` is no module, ImportError without torch_geometric
    """
    for module in _modules(model, "convert").values():
        ours = _pairs().get(type(module))
        if ours is not None:
            _set_class(module, ours)
    return model


def revert(model):
    """Gives every layer of ours PyG's class again, in place; returns the model."""
    for module in _modules(model, "revert").values():
        stock = {ours: pyg for pyg, ours in _pairs().items()}.get(type(module))
        if stock is not None:
            _set_class(module, stock)
    return model


def conversion_report(model):
    """What is swapped in `model`, what is not, and why: a ConversionReport."""
    return ConversionReport(
        entry
        for name, module in _modules(model, "conversion_report").items()
        if (entry := _entry(name, module)) is not None
    )


def _set_class(module, cls):
    module.__class__ = cls
    module._set_jittable_templates()  # what PyG does for the first instance of a class


def _modules(model, caller):
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}: model must be a torch.nn.Module, got {type(model).__name__}"
        )
    require_pyg(f"gnnoffload.{caller}")
    return dict(model.named_modules())


def _pairs():
    """PyG's class -> ours, which is its direct subclass."""
    import gnnoffload.nn

    ours = [getattr(gnnoffload.nn, name) for name in PYG_LAYERS]
    return {layer.__bases__[0]: layer for layer in ours}


def _entry(name, module):
    from torch_geometric.nn import MessagePassing

    if not isinstance(module, MessagePassing):
        original = getattr(module, "original_name", None)
        if original in PYG_LAYERS:
            return Entry(name, original, KEPT, "compiled by TorchScript")
        return None
    layer, pairs = type(module).__name__, _pairs()
    if type(module) in pairs.values():
        return Entry(name, layer, SWAPPED, _leaves_to_pyg(module))
    if type(module) in pairs:
        return Entry(name, layer, READY, "call convert(model)")
    for stock, ours in pairs.items():
        if isinstance(module, ours):
            reason = f"a subclass of gnnoffload.nn.{ours.__name__}"
            return Entry(name, layer, SWAPPED, reason)
        if isinstance(module, stock):
            reason = f"a subclass of {stock.__name__}; only PyG's own class is swapped"
            return Entry(name, layer, KEPT, reason)
    return Entry(name, layer, KEPT, "no fused counterpart yet")


def _leaves_to_pyg(module):
    """Why calls of a swapped layer will fall back whatever their inputs are."""
    from gnnoffload.nn import _guard

    stock = next(s for s, ours in _pairs().items() if type(module) is ours)
    reason = _guard.layer_reason(module, stock)
    return f"falls back: {reason}" if reason else ""
