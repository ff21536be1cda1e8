"""Nothing grows: CPython's recipe, some warm-ups, then loops of equal deltas, over
Python's memory blocks, live tensors, file descriptors, and what the engine holds."""

import contextlib
import gc
import itertools
import os
import sys

import pytest
import torch

import gnnoffload as go

WARM_UPS, RUNS, CALLS = 12, 5, 40
PATIENCE = 40  # runs; Python's and torch's pools fill for 2000 calls of `operations`


def engine(store="ram", **more):
    return go.offload(0, store=store, min_bytes=1, inflight=1 << 13, **more)


GRAPH = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])


def loss_under(context):
    x = torch.ones(8, 8, requires_grad=True)
    with context:
        return x.exp().tanh().mul(2.0).exp().sum()


def moved():
    loss_under(engine()).backward()


def moved_to_disk():
    loss_under(engine("file")).backward()


def skipped():
    loss_under(go.offload(0, store="ram", min_bytes="1MiB")).backward()


def kept():
    with engine():
        loss = loss_under(go.keep())
    loss.backward()


def never_back_propagated():
    loss_under(engine())


def skipped_never_back_propagated():
    loss_under(go.offload(0, store="ram", min_bytes="1MiB"))


def twice():
    loss = loss_under(engine())
    loss.backward(retain_graph=True)
    loss.backward()


def in_forward():
    with contextlib.suppress(ZeroDivisionError), engine():
        torch.ones(8, 8, requires_grad=True).exp().exp()
        raise ZeroDivisionError


def changed_in_place():
    x = torch.ones(8, 8, requires_grad=True)
    with engine():
        y = x.exp()
        loss = y.tanh().sum()
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError):
        loss.backward()


def full():
    with pytest.raises(go.OffloadError):
        loss_under(engine(host_limit=1, on_full="raise"))


def failed_read():
    off = engine(host_limit="7MiB")
    loss = loss_under(off)
    off._lane.engine.drain()  # all of it is away: unpack has to read
    off._lane.engine.fail(False, 1)
    with pytest.raises((go.SpillError, go.OffloadError)):
        loss.backward()


def attached():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    handle = engine().attach(model)
    model(torch.ones(8, 8)).sum().backward()
    handle.remove()


def reported():
    off = engine()
    loss_under(off).backward()
    str(off.report()), off.report().to_dict(), off.state()


def graphs():
    graph = go.Graph(GRAPH.clone(), (3, 3))
    graph.transpose(), graph.degree, graph.edge_index


def bad_graph():
    with pytest.raises(go.GraphError):
        go.Graph(GRAPH + 5, (3, 3))


def operations():
    x = torch.ones(3, 4, requires_grad=True)
    edge, weight = torch.ones(4, 4, requires_grad=True), torch.ones(4)
    y = go.spmm(GRAPH, x, weight.requires_grad_()) + go.gine(GRAPH, x, edge)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (grad.sum() + go.sddmm(GRAPH, x, y).sum()).backward()


def bad_operands():
    with pytest.raises(ValueError):
        go.gine(GRAPH, torch.ones(3, 4), torch.ones(4, 5))


CASES = [
    moved,
    moved_to_disk,
    skipped,
    kept,
    never_back_propagated,
    skipped_never_back_propagated,
    twice,
    in_forward,
    changed_in_place,
    full,
    failed_read,
    attached,
    reported,
    graphs,
    bad_graph,
    operations,
    bad_operands,
]


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """What is there before these tests is not looked at again by each collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def held():
    """What is alive, after a collection."""
    for lane in go._offload._lanes.values():
        lane.engine.drain()
        lane.collect()
        lane.reports.clear()
    gc.collect()
    tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    engines = [lane.engine.state() for lane in go._offload._lanes.values()]
    kept = [(s["blocks"], s["passes"], s["resident"], s["kept"]) for s in engines]
    return tensors, descriptors(), kept, sys.getallocatedblocks()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:.*stay in memory")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_equal_deltas(case):
    seen = []
    for _ in range(WARM_UPS + RUNS + 1):
        seen.append(after_calls(case))
    *rest, blocks = zip(*(seen[WARM_UPS:]), strict=True)
    for values in rest:  # tensors, descriptors, what engines hold
        assert all(value == values[0] for value in values), values
    # one object lost a call would show in every run, however many have been
    growth = [b - a for a, b in itertools.pairwise(blocks)]
    while min(growth) >= CALLS and len(growth) < PATIENCE:
        before, after = after_calls(case)[-1], after_calls(case)[-1]
        growth.append(after - before)
    assert min(growth) < CALLS


def after_calls(case):
    for _ in range(CALLS):
        case()
    return held()


def test_a_leak_would_show():
    lost = []

    def leaking():
        lost.append(object())

    with pytest.raises(AssertionError):
        test_equal_deltas(leaking)
