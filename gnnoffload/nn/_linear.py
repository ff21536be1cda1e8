"""Linear maps of node features, several of one x as one autograd node.

Backward adds the parts of the gradient of x up in one tensor, each as soon as it is
made. In float32 the tall products go to oneDNN, which torch carries, on CPUs whose
vectors MKL, torch's choice, does not use to the full: AMD's with AVX-512 take half the
time. They go there in blocks of two sizes: oneDNN compiles for each new number of rows,
0.4 ms and more, which a mini-batch would pay each time.
"""

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import linear

from gnnoffload._dispatch import is_transformed
from gnnoffload.nn._guard import is_plain

BLOCKS = 4096, 1024  # rows
ONEDNN_FROM = 256  # entries of the weight; its calls cost 10 us more


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
    if not is_tall(x, weight) or torch.is_grad_enabled():
        return linear(x, weight, bias)
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # a slice takes seconds instead of 1 ms
    x, y = x.contiguous(), x.new_empty(x.shape[0], weight.shape[0])
    begin, n_rows = 0, x.shape[0]
    for step in BLOCKS:
        while n_rows - begin >= step:
            rows = slice(begin, begin + step)
            y[rows] = _onednn(x[rows], weight, bias, "none", [], "")
            begin += step
    if begin < n_rows:
        y[begin:] = linear(x[begin:], weight, bias)
    return y


def is_tall(x, weight):
    """Whether oneDNN makes x @ weight.T."""
    return (
        x.dtype is torch.float32
        and x.is_cpu
        and x.shape[0] >= BLOCKS[-1]
        and weight.numel() >= ONEDNN_FROM
        and _onednn is not None
    )


def _find_onednn():
    """oneDNN's product as Inductor calls it, where torch has it, and MKL, which on a
    CPU that is not Intel's uses half of the vector."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return None
    if "GenuineIntel" in _cpu_facts():
        return None
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return getattr(packet, "default", None)


def _cpu_facts():
    try:
        with open("/proc/cpuinfo") as file:
            return file.read(4096)
    except OSError:
        return ""


_onednn = _find_onednn()
