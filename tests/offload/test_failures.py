"""Law 9: a full tier or a failed write keeps training going; a failed read raises."""

import warnings

import pytest
import torch
from offload_steps import assert_empty, assert_same, gradients, x
from torch import nn

import gnnoffload as go

pytestmark = pytest.mark.law(9)
BLOCK = 64 * 64 * 4


def model():
    return nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(64, 64), nn.Tanh())))


def engine(on_full="keep", host_limit="64MiB", min_bytes=1000):
    return go.offload(
        0, store="ram", min_bytes=min_bytes, host_limit=host_limit, on_full=on_full
    )


@pytest.fixture
def plain():
    return gradients(model, [x(64, 64)], steps=2)


def test_a_full_tier_keeps_tensors_and_says_so_once(plain):
    off = engine(host_limit=3 * BLOCK, min_bytes=1001)
    with pytest.warns(RuntimeWarning, match="stay in memory") as said:
        ours = gradients(model, [x(64, 64)], off, steps=2)
    assert len(said) == 1
    assert_same(ours, plain)
    report = off.report()
    assert 0 < report.bytes_out <= 3 * BLOCK
    assert report.full > 0 and report.full_bytes == report.full * BLOCK
    assert "kept: far side full" in str(report)
    assert_empty(off)


def test_a_tier_without_any_room(plain):
    off = engine(host_limit=1, min_bytes=1002)
    with pytest.warns(RuntimeWarning):
        assert_same(gradients(model, [x(64, 64)], off, steps=2), plain)
    assert off.report().bytes_out == 0
    assert "far side was full" in off.report().nothing_moved_because()


def test_on_full_raise():
    off = engine("raise", host_limit=1, min_bytes=1003)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody is told that training goes on
        with pytest.raises(go.OffloadError), off:
            model()(x(64, 64))
    assert_empty(off)


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_failed_write_keeps_the_tensor(plain, nth):
    off = engine(min_bytes=1004 + nth)
    off._lane.engine.fail(True, nth)
    with pytest.warns(RuntimeWarning, match="stay in memory"):
        ours = gradients(model, [x(64, 64)], off, steps=2)
        off._lane.engine.drain()
    assert_same(ours, plain)
    retired = off._lane.engine.state()["slot_bytes"]
    assert retired > 0  # where the write failed nothing is put again
    assert_empty(off, retired)
    assert_same(gradients(model, [x(64, 64)], off, steps=2), plain)
    assert_empty(off, retired)


@pytest.mark.parametrize("nth", [1, 3])
def test_a_failed_read_raises_at_unpack_and_again(nth):
    off = engine(min_bytes=1020 + nth)
    torch.manual_seed(7)
    net = model()
    with off:
        loss = net(x(64, 64)).square().sum()
    off._lane.engine.drain()
    off._lane.engine.fail(False, nth)
    with pytest.raises(go.SpillError):
        loss.backward(retain_graph=True)
    with pytest.raises(go.SpillError):  # no retry into success
        loss.backward()
    del loss
    assert_empty(off)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(model, [x(64, 64)], off)


@pytest.mark.parametrize("directory", ["/nope", "/proc", "file"])
def test_a_bad_directory_raises_at_construction(directory, tmp_path):
    if directory == "file":
        (tmp_path / "file").write_text("")
        directory = str(tmp_path / "file")
    with pytest.raises(go.SpillError, match=directory):
        go.offload(0, spill_dir=directory)


def test_a_shut_engine_says_so():
    off = engine(min_bytes=1050)
    torch.manual_seed(7)
    net = model()
    with off:
        loss = net(x(64, 64)).square().sum()
    off._lane.engine.shutdown()
    with pytest.raises(go.SpillError, match="shut down"):
        loss.backward()
    with pytest.raises(go.OffloadError, match="shut down"), off:
        pass
