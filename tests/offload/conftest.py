"""Fixtures of the offload tests."""

import gc

import pytest

import gnnoffload as go


@pytest.fixture(params=["ram", "file"])
def store(request):
    return request.param


@pytest.fixture
def move_all(store, tmp_path):
    """An engine that moves whatever it may: budget 0, small windows, any size."""
    where = {"spill_dir": str(tmp_path)} if store == "file" else {}
    return go.offload(
        0, store=store, min_bytes=1, inflight=1 << 14, prefetch=1 << 16, **where
    )


@pytest.fixture(autouse=True)
def no_gc():
    """Reference counting alone must free everything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
