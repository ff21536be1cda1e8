"""compare: two layers, the same weights, the same inputs; outputs and all gradients."""

import torch

# Relative to the largest entry of a tensor. Sums of up to a few thousand terms in
# another order than PyG's; PyG rounds intermediate 16-bit results, we do not.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
FLOOR = 0.05


class Mismatch(AssertionError):
    """Our layer and PyG's disagree; the text names the tensor and the difference."""


def compare(ours, theirs, inputs, *, tolerance=None):
    """Runs both layers forward and backward and compares all they produce.

    Args
    ----
    ours, theirs : modules with the same state_dict keys; ours gets theirs' weights
    inputs : tuple of positional or dict of keyword arguments. Floating tensors in it
        (also inside tuples) are copied as leaves; those that require a gradient get it
        compared. `Each(a, b)` hands a to ours and b to theirs.
    tolerance : largest |difference| / largest |entry|; default by dtype. The entry is
        that of the tensor, or FLOOR of the largest gradient of the call if that is
        more: a gradient that is zero but for rounding (of a bias under a softmax) has
        no size of its own.

    Returns
    -------
    dict, name of a tensor -> relative difference. Names: "output",
    "grad of argument 0", "grad of lin.weight", ...

    Raises
    ------
    Mismatch, for dtype, shape, a missing gradient or a difference beyond the tolerance
    """
    ours.load_state_dict(theirs.state_dict())
    runs = [_run(layer, inputs, side) for side, layer in enumerate((ours, theirs))]
    if runs[0].keys() != runs[1].keys():
        raise Mismatch(f"results differ: {sorted(runs[0].keys() ^ runs[1].keys())}")
    gradients = (t for name, t in runs[1].items() if name != "output" and t.numel())
    largest = max((t.abs().max().item() for t in gradients), default=0.0)
    floors = {name: 0.0 if name == "output" else FLOOR * largest for name in runs[1]}
    return {
        name: _difference(name, runs[0][name], runs[1][name], tolerance, floors[name])
        for name in runs[1]
    }


class Each:
    """An argument that has one form for ours and another for theirs."""

    def __init__(self, ours, theirs):
        self.forms = (ours, theirs)


def _run(layer, inputs, side):
    """{name: output and gradients} of one layer."""
    keyed = inputs if isinstance(inputs, dict) else dict(enumerate(inputs))
    args = {key: _leaf(value, side) for key, value in keyed.items()}
    layer.zero_grad(set_to_none=True)
    if isinstance(inputs, dict):
        y = layer(**args)
    else:
        y = layer(*args.values())
    results = {"output": y.detach()}
    if y.requires_grad:
        generator = torch.Generator().manual_seed(y.numel())
        grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        y.backward(grad.to(y.dtype))
    for key, value in args.items():
        for where, tensor in _tensors(value, f"argument {key}"):
            if tensor.grad is not None:
                results[f"grad of {where}"] = tensor.grad
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:
            results[f"grad of {name}"] = parameter.grad
    return results


def _leaf(value, side):
    if isinstance(value, Each):
        value = value.forms[side]
    if isinstance(value, tuple):
        return tuple(_leaf(part, side) for part in value)
    if _differentiable(value):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value


def _tensors(value, where):
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _tensors(part, f"{where}[{i}]")
    elif _differentiable(value):
        yield where, value


def _differentiable(value):
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.is_floating_point()
    )


def _difference(name, ours, theirs, tolerance, floor):
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        raise Mismatch(
            f"{name}: got {ours.dtype} {tuple(ours.shape)}, "
            f"expected {theirs.dtype} {tuple(theirs.shape)}"
        )
    if theirs.numel() == 0:
        return 0.0
    limit = TOLERANCE[theirs.dtype] if tolerance is None else tolerance
    ours, theirs = ours.double(), theirs.double()
    difference = (ours - theirs).abs().max().item()
    relative = difference / max(theirs.abs().max().item(), floor, 1e-30)
    if not (relative <= limit or difference <= 1e-30):
        raise Mismatch(f"{name}: differs by {relative:.2e}, limit {limit:.0e}")
    return relative
