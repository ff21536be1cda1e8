"""Linear maps of node features, several of one x as one autograd node.

Backward adds the parts of the gradient of x up in one tensor, each as soon as it is
made. On a CPU in float32 the tall products go to oneDNN, which torch carries, where
torch itself takes MKL: on a CPU whose vectors MKL does not use to the full they take
less than half the time, on others as long.
"""

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import linear

from gnnoffload._dispatch import is_transformed
from gnnoffload.nn._guard import is_plain

ONEDNN_FROM = 2**20  # multiply-adds of a product; its calls cost 10 us more


def linears(x, *maps):
    """[x @ weight.T + bias for each (weight, bias) of maps], bias None for none.

    Args
    ----
    x : [N, F]
    maps : pairs of weight [F', F] and bias [F']
    """
    parts = [part for pair in maps for part in pair]
    if torch.compiler.is_compiling() or not _is_plain(x, *parts):
        return [linear(x, weight, bias) for weight, bias in maps]
    return list(_Linears.apply(x, *parts))


def projected(x, weight, bias=None):
    """x [N, F] @ weight.T + bias"""
    if is_tall(x, weight) and not is_transformed():
        return linears(x, (weight, bias))[0]
    return linear(x, weight, bias)


def through(modules, x):
    """x through the modules in turn, a plain Linear by `projected`."""
    for module in modules:
        if x.dim() == 2 and is_plain(module):
            x = projected(x, module.weight, module.bias)
        elif type(module) is nn.Sequential and not _is_watched(module):
            x = through(module, x)
        else:
            x = module(x)
    return x


def _is_watched(module):
    return module._forward_hooks or module._forward_pre_hooks


def _is_plain(*tensors):
    """Whether eager autograd sees nothing but tensors of one dtype."""
    dtype = tensors[0].dtype
    return torch._C._functorch.maybe_current_level() is None and all(
        t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.dtype is dtype)
        for t in tensors
    )


class _Linears(Function):
    @staticmethod
    def forward(ctx, x, *parts):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *parts[::2])
        maps = zip(parts[::2], parts[1::2], strict=True)
        return tuple(product(x, weight, bias) for weight, bias in maps)

    @staticmethod
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad
        grad_x, of_parts = None, []
        for k, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            if grad is None:
                of_parts += [None, None]
                continue
            if needs_x:
                grad_x = _added(grad_x, product(grad, weight.t()))
            of_parts += [
                grad.t() @ x if needs[2 * k] else None,
                grad.sum(0) if needs[2 * k + 1] else None,
            ]
        return grad_x, *of_parts


def _added(total, part):
    if total is None:
        return part
    return total + part if torch.is_grad_enabled() else total.add_(part)


def product(x, weight, bias=None):
    """x @ weight.T + bias; under create_graph=True as torch can differentiate it."""
    if is_tall(x, weight) and not torch.is_grad_enabled():
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # a slice takes seconds instead of 1 ms
        return _onednn(x.contiguous(), weight, bias, "none", [], "")
    return linear(x, weight, bias)


def is_tall(x, weight):
    """Whether x @ weight.T goes to oneDNN."""
    return (
        x.dtype is torch.float32
        and x.is_cpu
        and x.shape[0] * weight.numel() >= ONEDNN_FROM
        and _onednn is not None
    )


def _find_onednn():
    """oneDNN's product as Inductor calls it, or None in a build of torch without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return getattr(packet, "default", None)


_onednn = _find_onednn()
