"""When a layer may take its fast path.

`blocked` answers with None or with the reason, in words, that the ledger prints. It
runs at every call, so each test is an attribute read; together they cost about 2 us.
"""

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear

from gnnoffload import _fallback
from gnnoffload.graph import Graph

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LINEAR = (nn.Linear, Linear)
REDUCE = {SumAggregation: "sum", MeanAggregation: "mean"}


def blocked(layer, base, x):
    """Why `layer`, a subclass of PyG's `base`, must use PyG's forward, or None.

    Args
    ----
    x : what the layer gathers from, [N, F]
    """
    return _input_reason(layer, x) or layer_reason(layer, base)


def _input_reason(layer, x):
    if not isinstance(x, Tensor):
        return f"x is {_name(x)}, not a tensor"
    if x.dim() != 2:
        return f"x has {x.dim()} dimensions (static graph)"
    if x.layout is not torch.strided:
        return "x is sparse"
    if x.dtype not in DTYPES:
        return f"dtype {_dtype(x.dtype)}"
    if not (x.is_cpu or x.is_cuda):
        return f"device {x.device.type}"
    if layer.node_dim != -2 and layer.node_dim != 0:
        return f"node_dim={layer.node_dim}"
    return None


def layer_reason(layer, base):
    """Why `layer` falls back whatever its inputs are; None if it does not."""
    if (
        layer._propagate_forward_pre_hooks
        or layer._propagate_forward_hooks
        or layer._message_forward_pre_hooks
        or layer._message_forward_hooks
        or layer._aggregate_forward_pre_hooks
        or layer._aggregate_forward_hooks
        or layer._message_and_aggregate_forward_pre_hooks
        or layer._message_and_aggregate_forward_hooks
    ):
        return "message passing hooks"
    if layer._explain:
        return "explain"
    if layer._decomposed_layers != 1:
        return f"decomposed_layers={layer._decomposed_layers}"
    aggregation = layer._modules.get("aggr_module")
    if type(aggregation) not in REDUCE and not _serves(layer, aggregation):
        return f"aggr={layer.aggr}"
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export():
            return "torch.onnx.export"
        return _overridden_by_class(type(layer), base)
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    if torch._C._functorch.maybe_current_level() is not None:
        return "torch.func transform"
    return _overridden(layer, base)


def _serves(layer, aggregation):
    """Whether the layer takes more aggregations than sum and mean, this one too."""
    serves = getattr(type(layer), "serves", None)
    return serves is not None and serves(aggregation)


def _overridden(layer, base):
    cls, own = type(layer), layer.__dict__
    if "message" in own or "aggregate" in own or "update" in own:
        return "a method of the instance replaced"
    if (
        cls.message is base.message
        and cls.update is base.update
        and cls.aggregate is base.aggregate
        and cls.message_and_aggregate is base.message_and_aggregate
        and cls.__bases__[0] is base
    ):
        return None
    return _overridden_by_class(cls, base)


@torch.compiler.assume_constant_result
def _overridden_by_class(cls, base):
    """Which method a subclass replaced. PyG itself puts a compiled propagate into each
    class, in a module whose name ends in "_propagate"."""
    for name in ("message", "aggregate", "update", "message_and_aggregate"):
        if getattr(cls, name) is not getattr(base, name):
            return f"{name}() overridden"
    for parent in cls.__mro__[: cls.__mro__.index(base)]:
        propagate = parent.__dict__.get("propagate", MessagePassing.propagate)
        compiled = propagate.__module__.endswith("_propagate")
        compiled |= hasattr(propagate, "cuts_messages")  # gnnoffload.chunk's
        if not compiled and propagate is not MessagePassing.propagate:
            return "propagate() overridden"
    return None


def reduction(layer):
    """ "sum" or "mean", the reduction of a layer that is not blocked."""
    return REDUCE[type(layer._modules["aggr_module"])]


def is_plain(linear):
    """True when calling `linear` is exactly x @ weight.T + bias, so it may be moved."""
    return (
        type(linear) in LINEAR
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    )


def fall_back(layer, reason, edge_index):
    """Notes the fallback; returns the edge_index for PyG, which knows no Graph."""
    _fallback.note(type(layer).__name__, reason)
    if isinstance(edge_index, Graph):
        return edge_index.edge_index
    return edge_index


def script_with_pyg(layer, base):
    """What torch.jit.script compiles in place of `layer`: its twin of PyG's class."""
    _fallback.note(type(layer).__name__, "torch.jit.script")
    stock = layer.__new__(base)
    stock.__dict__.update(layer.__dict__)
    stock._set_jittable_templates()
    return stock


def _name(x):
    return type(x).__name__


def _dtype(dtype):
    return str(dtype).removeprefix("torch.")


def weight_reason(weight):
    """Why `weight` cannot go to spmm; None if it can."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        return f"edge_weight is {_name(weight)}, not a tensor"
    if weight.dtype not in DTYPES:
        return f"edge_weight of dtype {_dtype(weight.dtype)}"
    if weight.dim() != 1 and weight.numel() != weight.size(0):
        return f"edge_weight of shape {tuple(weight.shape)}"
    return None


def size_for_pyg(edge_index, size):
    """The size argument that PyG needs when `edge_index` was a Graph."""
    if size is None and isinstance(edge_index, Graph):
        return (edge_index.num_src, edge_index.num_dst)
    return size
