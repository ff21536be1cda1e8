"""No op allocates a tensor of edges x features, forward or backward: counted by torch's
dispatcher, and measured by the operating system, which also sees what C allocates."""

import subprocess
import sys

import pytest
import torch
from graph_cases import random_edges
from torch.utils._python_dispatch import TorchDispatchMode

import gnnoffload as go

pytestmark = pytest.mark.law(3)

N, E, F = 40, 5000, 32


class Largest(TorchDispatchMode):
    """Remembers the most elements that one op's output had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def step(ops, edges, reduce):
    x = torch.randn(N, F, requires_grad=True)
    weight = torch.randn(E, requires_grad=True)
    y = ops.spmm(edges, x, weight, reduce)
    z = ops.sddmm(edges, y, x)
    grads = torch.autograd.grad((z * z).sum(), (x, weight), create_graph=True)
    (grads[0].sum() + grads[1].sum()).backward()  # double backward too


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_largest_output(reduce):
    edges = random_edges(N, N, E)
    graph = go.Graph(edges, (N, N))
    with Largest() as ours:
        step(go.ops, graph, reduce)
    assert E <= ours.elements <= 2 * E
    with Largest() as theirs:  # the mode would have seen it
        step(go.reference, graph, reduce)
    assert theirs.elements >= E * F


MEASURE = """
import sys, torch, gnnoffload as go

def high_water():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024

torch.set_num_threads(2)
N, E, F = 2000, 300_000, 128
ops = go.ops if sys.argv[1] == "ops" else go.reference
graph = go.Graph(torch.randint(0, N, (2, E)), (N, N))
graph.args(True)
x = torch.randn(N, F, requires_grad=True)
w = torch.randn(E, requires_grad=True)
go.spmm(graph, x[:, :1], w).sum().backward()  # threads and code are there
before = high_water()
ops.spmm(graph, x, w).sum().backward()
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_resident_memory():
    def growth(ops):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, ops],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    message = 300_000 * 128 * 4  # bytes of one [E, F] tensor
    assert growth("ops") < message / 8
    assert growth("reference") > message  # the measure sees one
