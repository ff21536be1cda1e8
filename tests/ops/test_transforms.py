"""torch.func transforms and forward mode see the ops as they see torch's own."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

import gnnoffload as go

pytestmark = [
    pytest.mark.law(1),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]

EDGES = torch.tensor([[0, 2, 2, 1, 0, 4], [1, 1, 0, 1, 1, 3]])
GRAPH = go.Graph(EDGES, (5, 4))
X = torch.randn(5, 3, dtype=torch.float64, generator=torch.manual_seed(0))
W = torch.randn(6, dtype=torch.float64)
A = torch.randn(4, 3, dtype=torch.float64)


def energy(ops):
    """A scalar of x and w through both ops."""

    def f(x, w):
        y = ops.spmm(GRAPH, x, w, "mean")
        return (ops.sddmm(GRAPH, y, x) ** 2).sum()

    return f


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(f, argnums=(0, 1))(X, W),
        lambda f: jacrev(f)(X, W),
        lambda f: hessian(f)(X, W),
        lambda f: jvp(f, (X, W), (X.cos(), W.sin())),
        lambda f: vmap(grad(f), in_dims=(0, None))(torch.stack((X, X.sin())), W),
        lambda f: vmap(f)(torch.stack((X, X.sin())), torch.stack((W, W.cos()))),
    ],
    ids=["grad", "jacrev", "hessian", "jvp", "vmap-grad", "vmap"],
)
def test_against_reference(transform):
    torch.testing.assert_close(
        transform(energy(go.ops)), transform(energy(go.reference))
    )


def test_forward_mode():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    a = A.clone().requires_grad_()
    for check in (
        lambda x, w: go.spmm(GRAPH, x, w, "mean"),
        lambda x, w: go.spmm(GRAPH, x) * w.sum(),
    ):
        assert gradcheck(check, (x, w), check_forward_ad=True, check_backward_ad=False)
    assert gradcheck(lambda a, x: go.sddmm(GRAPH, a, x), (a, x), check_forward_ad=True)


def test_a_tangent_is_never_dropped():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X.cos())
        tangent = forward_ad.unpack_dual(go.spmm(GRAPH, dual)).tangent
    torch.testing.assert_close(tangent, go.spmm(GRAPH, X.cos()))
