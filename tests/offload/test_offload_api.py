"""The context, its arguments, attach, keep, nesting, and the report's sentences."""

import copy
import pickle

import pytest
import torch
from offload_steps import assert_empty, assert_same, gradients, x
from torch import nn
from torch.utils.checkpoint import checkpoint

import gnnoffload as go

RAM = {"store": "ram", "min_bytes": 1, "host_limit": "64MiB"}


def deep(depth=4):
    return nn.Sequential(
        *(m for _ in range(depth) for m in (nn.Linear(32, 32), nn.Tanh()))
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, r"budget=.*spill_dir"),
        ({"budget": "banana"}, ValueError, r"budget.*8GiB.*'banana'"),
        ({"budget": "8 gb"}, ValueError, r"budget.*8GiB.*'8 gb'"),
        ({"budget": -1}, ValueError, r"budget.*-1"),
        ({"budget": "140%"}, ValueError, r"budget.*'140%'"),
        ({"budget": [1]}, TypeError, r"budget.*list"),
        ({"budget": 0, "min_bytes": "x"}, ValueError, r"min_bytes.*'x'"),
        ({"budget": 0, "inflight": -5}, ValueError, r"inflight.*-5"),
        ({"budget": 0, "prefetch": "much"}, ValueError, r"prefetch.*'much'"),
        ({"budget": 0, "store": "tape"}, ValueError, r'store must be "auto".*\'tape\''),
        (
            {"budget": 0, "on_full": "cry"},
            ValueError,
            r'on_full must be "keep".*\'cry\'',
        ),
        ({"budget": 0, "spill_dir": "/nope"}, go.SpillError, r"/nope"),
        ({"budget": 0, "store": "ram", "spill_dir": "/x"}, ValueError, r"spill_dir"),
    ],
)
@pytest.mark.law(10)
def test_a_bad_argument_is_named(arguments, error, text):
    with pytest.raises(error, match=text):
        go.offload(**arguments)


def test_a_share_is_a_share_of_the_memory():
    half = go.offload("50%", **RAM).state()["budget"]
    assert go.offload("25%", **RAM).state()["budget"] == pytest.approx(half / 2, abs=1)


def test_decorator_and_recursion():
    off = go.offload(0, **RAM)
    net = deep()

    @off
    def loss_of(h, depth):
        return net(h).sum() + (loss_of(h + 1, depth - 1) if depth else 0)

    loss_of(x(16, 32), 2).backward()
    assert len([r for r in off.history if r.blocks]) >= 3
    assert loss_of.__name__ == "loss_of"
    assert_empty(off)


def test_inner_context_replaces_the_outer():
    outer, inner = go.offload(0, **RAM), go.offload(1, **RAM)
    net = deep()
    with outer:
        with inner:
            loss = net(x(16, 32)).sum()
        loss = loss.exp()  # one small save of the outer
    loss.backward()
    assert outer.report().saves == 1
    assert inner.report().saves > 4


def test_keep_exempts_a_region():
    off = go.offload(0, **RAM)
    net = deep()
    keep = go.keep()
    with off:
        with keep:
            y = net(x(16, 32))
        loss = y.sum()
    loss.backward()
    assert off.report().saves == 0
    p = nn.Parameter(torch.ones(8))
    with off, keep:
        loss = (p * p).sum()
    with torch.no_grad():
        p.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = deep(1)
        self.processor = nn.ModuleList(deep(1) for _ in range(3))
        self.decoder = deep(1)

    def forward(self, h):
        h = self.encoder(h)
        for block in self.processor:
            h = h + block(h)
        return self.decoder(h)


@pytest.mark.parametrize("modules", [None, "processor.*", "processor.1"])
def test_attach_enters_in_the_matching_modules(modules):
    plain = gradients(Net, [x(16, 32)])
    off = go.offload(0, min_bytes=1, store="ram", inflight=0, host_limit="32MiB")
    before = len(off.history)
    handles = []

    def build():
        net = Net()
        handles.append(off.attach(net, modules))
        return net

    assert_same(gradients(build, [x(16, 32)]), plain)
    reports = off.history[before:]
    assert len(reports) == 1  # one call of the root is one pass
    expected = {None: 16, "processor.*": 9, "processor.1": 3}
    assert reports[0].saves == pytest.approx(expected[modules], abs=3)
    handles[0].remove()
    torch.manual_seed(7)
    net = Net()
    off.attach(net, modules).remove()
    net(x(16, 32)).sum().backward()
    assert len(off.history) == before + 1


def test_attach_names_what_it_does_not_find():
    with pytest.raises(ValueError, match=r"'processor\.9'"):
        go.offload(0, **RAM).attach(Net(), "processor.9")


def test_an_attached_model_can_be_copied_and_pickled():
    off = go.offload(0, min_bytes=1, store="ram", host_limit="31MiB")
    net = Net()
    off.attach(net, "processor.*")
    twin = copy.deepcopy(net)
    before = len(off.history)
    for each in (net, twin):
        each(x(16, 32)).square().sum().backward()
    assert_same([p.grad for p in twin.parameters()], [p.grad for p in net.parameters()])
    assert len(off.history) == before + 2
    assert pickle.loads(pickle.dumps(off))._lane is off._lane


def test_a_module_left_by_an_exception_leaves_the_context():
    off = go.offload(0, **RAM)
    net = nn.Sequential(nn.Linear(32, 32))
    off.attach(net)
    with pytest.raises(RuntimeError):
        net(x(16, 31))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


# -------------------------------------------------------------------------- the report


def test_before_any_pass():
    off = go.offload(12345, **RAM)
    assert "no pass has finished" in str(off.report())
    assert off.history == []


@pytest.mark.law(11)
def test_nothing_moved_because_grad_mode_was_off():
    off = go.offload(0, **RAM)
    with off, torch.no_grad():
        deep()(x(16, 32))
    assert "nothing was saved" in off.report().nothing_moved_because()
    with torch.no_grad(), off:
        deep()(x(16, 32))
    assert "grad mode was off" in str(off.report())


@pytest.mark.law(11)
@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_moved_because_a_checkpoint_hides_it(reentrant):
    off = go.offload("1MiB", **RAM)
    net, h = deep(), x(16, 32, grad=True)
    with off:
        loss = checkpoint(net, h, use_reentrant=reentrant).sum()
    loss.backward()
    reason = off.report().nothing_moved_because()
    assert "checkpoint" in reason and "2.0KiB" in reason.replace(" ", "")


@pytest.mark.law(11)
def test_skipped_tensors_are_counted_with_their_reason():
    class Sub(torch.Tensor):
        pass

    off = go.offload(0, store="ram", min_bytes=1024, host_limit="64MiB")
    p = nn.Parameter(torch.ones(64, 64))
    z = torch.ones(64, 64, dtype=torch.complex64, requires_grad=True) * 1
    sub = torch.ones(64, 64).as_subclass(Sub)
    with off:
        a = (p * p).sum()  # twice a parameter
        b = (torch.ones(4, requires_grad=True).exp().exp()).sum()  # small, twice
        c = (z.conj() * z).real.sum()
        d = (sub * p).as_subclass(torch.Tensor).sum()
    (a + b + c + d).backward()
    skipped = off.report().skipped
    assert skipped["parameter"] >= 2
    assert skipped["small"] == 2
    assert skipped["conj_or_neg"] == 1
    assert skipped["subclass"] >= 1


def test_report_is_a_table_and_a_dict():
    off = go.offload(0, store="ram", min_bytes="2KiB", inflight=0, host_limit="64MiB")
    gradients(deep, [x(16, 32)], off)
    report = off.report()
    text, data = str(report), report.to_dict()
    for word in (
        "moved out",
        "stalls",
        "owned elsewhere",
        "min_bytes = ",
        "peaks",
        "#",
    ):
        assert word in text
    assert data["bytes_out"] == report.bytes_out > 0
    assert sum(n for _, n, _ in data["size_classes"]) == data["saves"]
    assert 0 <= data["hidden_fraction"] <= 1
    with pytest.raises(AttributeError, match="bytes_sideways"):
        _ = report.bytes_sideways


def test_auto_keeps_what_the_link_cannot_hide():
    off = go.offload("auto", store="ram", min_bytes=1024, host_limit="256MiB")
    plain = gradients(deep, [x(256, 32)], steps=4)
    assert_same(gradients(deep, [x(256, 32)], off, steps=4), plain)
    first, last = off.history[0], off.history[-1]
    assert first.bytes_out == 0  # the first pass is measured
    auto = off._lane.auto
    assert auto.budget == max(0, last.block_bytes - int(auto.hidden))
    assert auto.hidden > 0


def test_host_memory_needs_a_cuda_device():
    if go._cuda_lane.absence() == "":
        pytest.skip("there is a CUDA device")
    with pytest.raises(go.DeviceError, match=r'store="host": .*(CUDA|NVIDIA|driver)'):
        go.offload(budget=0, store="host")
    with pytest.raises(ValueError, match="writing gigabytes to disk is no default"):
        go.offload()
