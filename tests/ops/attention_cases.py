"""The ways to call attention, for the ops and for the reference alike."""

import torch

CASES = [
    *("gat", "gat edge"),
    *("gatv2", "gatv2 edge", "gatv2 attr", "gatv2 attr-20"),
    *("dot_attention", "dot_attention edge", "dot_attention attr"),
]
SMALL = torch.tensor([[0, 2, 2, 1, 0, 4, 0], [1, 1, 0, 1, 1, 3, 3]])  # with a duplicate
SIZE = (5, 4)  # sources, destinations: the third of these is isolated

# the rounding of a result; what the sums in the accumulator may add, of the largest
ROUNDING = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
SUMS = {torch.float64: 1e-13}


def operands(case, size, n_edges, heads=2, channels=5, dtype=torch.float64, seed=0):
    """{argument: tensor} of a case."""
    generator = torch.Generator().manual_seed(seed)
    n_src, n_dst = size
    op, mode, n_attr = (*case.replace("-", " ").split(), "", "")[:3]
    n_attr = int(n_attr or 6)

    def randn(*shape):
        made = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return made.to(dtype)

    if op == "gat":
        made = dict(
            x=randn(n_src, heads, channels),
            score_src=randn(n_src, heads),
            score_dst=randn(n_dst, heads),
        )
        return made | ({"score_edge": randn(n_edges, heads)} if mode else {})
    if op == "gatv2":
        made = dict(
            x_src=randn(n_src, heads, channels),
            x_dst=randn(n_dst, heads, channels),
            att=randn(heads, channels),
        )
    else:
        made = dict(
            query=randn(n_dst, heads, channels),
            key=randn(n_src, heads, channels),
            value=randn(n_src, heads, channels),
        )
    if mode == "edge":
        made["edge"] = randn(n_edges, heads, channels)
    elif mode == "attr":
        made["edge_attr"] = randn(n_edges, n_attr)
        made["edge_weight"] = randn(heads * channels, n_attr) / n_attr**0.5
    return made


def call(ops, case, graph, tensors, **options):
    """ops.<op>(graph, ...) of `ops`, which is go or go.reference."""
    return getattr(ops, case.split()[0])(graph, **tensors, **options)


def leaves(tensors):
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}


def step(ops, case, graph, tensors, grad, **options):
    """[out, the operands' gradients...]"""
    tensors = leaves(tensors)
    out = call(ops, case, graph, tensors, **options)
    return [out.detach(), *torch.autograd.grad(out, tensors.values(), grad)]


def assert_near(got, exact, dtype, roundings=1):
    """Everything is computed in the accumulator, so that a result is off by its own
    rounding and by little else."""
    assert got.dtype is dtype and got.shape == exact.shape
    assert got.isfinite().all()
    if exact.numel() == 0:
        return
    size, largest = exact.abs(), exact.abs().max()
    bound = ROUNDING[dtype] * (size + (roundings - 1) * largest)
    bound += SUMS.get(dtype, 5e-5) * largest.clamp(min=1)
    error = (got.double() - exact).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.1f} times the bound"
