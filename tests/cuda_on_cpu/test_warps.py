"""Shuffles, votes, barriers, memory order: against tables and the PTX manual."""

import ctypes
import re

import pytest
import torch
from cuda_executor import HERE, Memory, Refused
from golden import DTYPES, KINDS, on_executor

LANES = torch.arange(32)


def call(library, function, inputs, shape, dtype, *args):
    """The output of a launcher (inputs..., output, args...)."""
    with Memory(library) as memory:
        addresses = [memory.input("x", tensor) for tensor in inputs]
        address, y = memory.output("y", shape, dtype)
        pointers = [ctypes.c_void_p(a) for a in (*addresses, address)]
        library.call(function, *pointers, *args)
        return y.clone()


def shuffle(library, x, kind, argument, width):
    args = (KINDS.index(kind), argument, width, DTYPES.index(x.dtype))
    return on_executor(library, "shuffle", x, x.shape, x.dtype, args)


def by_the_manual(kind, argument, width):
    """The lane each lane reads: the pseudocode of PTX's shfl.sync, with the operand c
    that CUDA's headers make of the width."""
    clamp = 0 if kind == "__shfl_up_sync" else 31
    segment = ~(width - 1) & 31
    b, lanes = argument & 31, []
    for lane in range(32):
        highest = (lane & segment) | (clamp & ~segment)
        lowest = lane & segment
        j, valid = {
            "__shfl_sync": (lowest | (b & ~segment), None),
            "__shfl_up_sync": (lane - b, lane - b >= highest),
            "__shfl_down_sync": (lane + b, lane + b <= highest),
            "__shfl_xor_sync": (lane ^ b, (lane ^ b) <= highest),
        }[kind]
        valid = j <= highest if valid is None else valid
        lanes.append(j if valid else lane)
    return torch.tensor(lanes)


# kind, argument, width, the lanes read by lanes 0 to 15
TABLE = [
    ("__shfl_sync", 3, 32, [3] * 16),
    ("__shfl_sync", 3, 8, [3] * 8 + [11] * 8),
    ("__shfl_sync", 9, 8, [1] * 8 + [9] * 8),  # srcLane modulo width
    ("__shfl_sync", -1, 4, [3] * 4 + [7] * 4 + [11] * 4 + [15] * 4),
    ("__shfl_up_sync", 2, 8, [0, 1, 0, 1, 2, 3, 4, 5, 8, 9, 8, 9, 10, 11, 12, 13]),
    (
        "__shfl_down_sync",
        2,
        8,
        [2, 3, 4, 5, 6, 7, 6, 7, 10, 11, 12, 13, 14, 15, 14, 15],
    ),
    ("__shfl_xor_sync", 1, 2, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14]),
    # xor beyond the segment: an earlier one is read, a later one is not
    ("__shfl_xor_sync", 4, 4, [0, 1, 2, 3, 0, 1, 2, 3, 8, 9, 10, 11, 8, 9, 10, 11]),
]


@pytest.mark.parametrize("kind, argument, width, lanes", TABLE)
def test_shuffle_table(right, kind, argument, width, lanes):
    y = shuffle(right, LANES.int(), kind, argument, width)
    assert y[:16].tolist() == lanes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffle_by_the_manual(right, kind, width):
    x = torch.randint(-(2**31), 2**31, (32,)).int()
    for argument in range(0, 35):
        y = shuffle(right, x, kind, argument, width)
        assert torch.equal(y, x[by_the_manual(kind, argument, width)]), argument


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shuffle_moves_the_bits_of_every_type(right, dtype):
    x = torch.randn(32).mul(1000).to(dtype)
    y = shuffle(right, x, "__shfl_xor_sync", 5, 32)
    assert torch.equal(y, x[LANES ^ 5])


def test_examples_of_the_programming_guide(right):
    x = torch.arange(32).int() * 3 + 1
    for order in right.orders:
        right.set_order(order, 5)
        broadcast, scan, total = call(right, "guide", [x], (3, 32), torch.int32)
        assert broadcast.tolist() == [1] * 32
        assert torch.equal(scan, x.view(4, 8).cumsum(1).flatten().int())
        assert total.tolist() == [int(x.sum())] * 32


def test_votes_count_the_living_lanes_of_the_mask(right):
    x = torch.zeros(32, dtype=torch.int32)
    x[1::2], x[4] = 1, 7
    ballot, some, every = call(right, "vote", [x], (3, 32), torch.int32)[:, :30]
    assert (
        ballot[1::2].tolist() == [0x2AAAAAAA] * 15
        and ballot[0::2].tolist() == [16] * 15
    )
    assert some.tolist() == [1] * 30
    assert every.tolist() == [0, 1] * 15


@pytest.mark.parametrize("threads", [2, 32, 64, 1024])
def test_block_barrier_and_dynamic_shared_memory(right, threads):
    x = torch.randint(-50, 50, (7, threads)).int()
    for seed, order in enumerate(right.orders):
        right.set_order(order, seed)
        y = call(right, "block_sum", [x], (7,), torch.int32, 7, threads)
        assert torch.equal(y, x.sum(1).int())


def test_warp_barrier_orders_memory_of_its_lanes(right):
    x = torch.arange(64).int()
    rolled = x.view(4, 16).roll(-3, 1)
    last_round = x.view(4, 16).roll(-2, 1)[:, :1]
    for seed, order in enumerate(right.orders):
        right.set_order(order, seed)
        y = call(right, "half_warps", [x], (64,), torch.int32)
        assert torch.equal(y.view(4, 16), rolled + last_round)


def test_indices_of_three_dimensions_and_partial_warps(right):
    y = call(right, "indices", [], (12, 40, 2), torch.int32)
    blocks, threads = torch.arange(12)[:, None] * 1000, torch.arange(40)
    assert torch.equal(y[..., 0], (blocks + threads).int())
    assert torch.equal(y[..., 1], (threads % 32).int().expand(12, 40))


def test_launches_are_ordered(right):
    y = call(right, "two_launches", [], (256,), torch.int32)
    assert y.tolist() == [6] * 128 + [3] * 128


def test_some_blocks_of_a_grid(right):
    x = torch.ones(7, 32).int()
    for order in right.orders:
        right.set_order(order)
        right.set_blocks([1, -2, 9])  # there is no tenth
        y = call(right, "block_sum", [x], (7,), torch.int32, 7, 32)
        assert y.tolist() == [-1, 32, -1, -1, -1, 32, -1]


# stride in floats: sectors read; 32 lanes, 8 floats in a sector
@pytest.mark.parametrize("stride, sectors", [(0, 1), (1, 4), (2, 8), (8, 32), (9, 32)])
def test_traffic_of_one_request(right, stride, sectors):
    right.count_traffic(True)
    with Memory(right) as memory:
        x = memory.input("x", torch.ones(32 * 9))
        y, _ = memory.output("y", (32,), torch.float32)
        right.call("strided", ctypes.c_void_p(x), ctypes.c_void_p(y), stride)
        assert right.traffic(x) == (sectors, 1)
        assert right.traffic(y, written=True) == (4, 1)
        assert right.traffic(y) == (0, 0)


def test_traffic_of_16_byte_accesses(right):
    right.count_traffic(True)
    with Memory(right) as memory:
        x = memory.input("x", torch.ones(128))
        y, _ = memory.output("y", (128,), torch.float32)
        right.call("packs", ctypes.c_void_p(x), ctypes.c_void_p(y))
        assert right.traffic(x) == (16, 1) and right.traffic(y, written=True) == (16, 1)


def test_traffic_of_rows_that_straddle(right):
    right.count_traffic(True)
    with Memory(right) as memory:
        x = memory.input("x", torch.ones(32), offset=4)
        y, _ = memory.output("y", (32,), torch.float32)
        right.call("strided", ctypes.c_void_p(x), ctypes.c_void_p(y), 1)
        assert right.traffic(x) == (5, 1)


def test_a_bad_pointer_of_a_right_kernel(right):
    with Memory(right) as memory:
        y, _ = memory.output("y", (7,), torch.int32)
        with pytest.raises(Refused, match="out of bounds: read of 4 bytes, outside"):
            right.call("block_sum", ctypes.c_void_p(0), ctypes.c_void_p(y), 7, 32)


def test_collectives_are_those_of_the_header():
    """Every collective of executor.h is in a test of a result or of an error."""
    header = (HERE / "executor.h").read_text()
    names = re.findall(r'X\(\w+, "(\w+)"\)', header)
    tests = "".join(
        (HERE / f"{f}_kernels.cu").read_text() for f in ("golden", "right", "wrong")
    )
    assert len(names) == 9 and all(f"{name}(" in tests for name in names)
