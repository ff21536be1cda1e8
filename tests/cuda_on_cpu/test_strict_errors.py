"""Each mistake of wrong_kernels.cu is an error with its exact text, in each order."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from cuda_executor import Memory, Refused

SOURCE = Path(__file__).with_name("wrong_kernels.cu").read_text().splitlines()
LINE = {
    m[1]: n for n, line in enumerate(SOURCE, 1) if (m := re.search(r"<- (\w+)", line))
}

# kernel: what happened, where in the launch (None: no thread runs); the place of the
# marker of that name follows, and @name stands for another one
ERRORS = {
    "not_in_mask": (
        "__shfl_sync with mask fffffffe by lane 0, which is not in it",
        "block (0,0,0), thread (0,0,0)",
    ),
    "other_collective": (
        "divergent __shfl_sync: lane 0 of its mask waits in __syncwarp at "
        "@other_collective_waits",
        "block (0,0,0), thread (8,0,0)",
    ),
    "other_mask": (
        "__shfl_sync with mask 7fffffff, but lane 0 named mask ffffffff",
        "block (0,0,0), thread (8,0,0)",
    ),
    "two_barriers": (
        "divergent barrier: thread (0,0,0) waits at @two_barriers_waits",
        "block (0,0,0), thread (40,0,0)",
    ),
    "deadlock": (
        "deadlock: thread (0,0,0) waits in __syncwarp at @deadlock_waits for "
        "lane 5, which waits in __syncthreads at @deadlock",
        None,
    ),
    "exited_lane": (
        "__shfl_sync reads lane 7, which has exited",
        "block (0,0,0), thread (0,0,0)",
    ),
    "unnamed_lane": (
        "__shfl_xor_sync reads lane 16, which is not in the mask",
        "block (0,0,0), thread (0,0,0)",
    ),
    "bad_width": (
        "__shfl_sync with width 12: a power of two up to 32",
        "block (0,0,0), thread (0,0,0)",
    ),
    "endless": (
        "more than 100000 accesses and collectives: an endless loop?",
        "block (0,0,0), thread (0,0,0)",
    ),
    "past_the_end": (
        "out of bounds: write of 4 bytes, 0 bytes past the end of y [256 bytes]",
        "block (0,0,0), thread (63,0,0)",
    ),
    "across_the_end": (
        "out of bounds: read of 8 bytes, 3 bytes past the end of x [256 bytes]",
        "block (0,0,0), thread (0,0,0)",
    ),
    "before_the_start": (
        "out of bounds: read of 4 bytes, 8 bytes before x [256 bytes]",
        "block (0,0,0), thread (0,0,0)",
    ),
    "misaligned": (
        "misaligned: 16-byte alignment at x + 4 for 'const struct float4'",
        "block (0,0,0), thread (0,0,0)",
    ),
    "misaligned_ldg": (
        "misaligned: read of 8 bytes at x + 4",
        "block (0,0,0), thread (0,0,0)",
    ),
    "write_to_input": (
        "write to an input: 4 bytes at x + 0",
        "block (0,0,0), thread (0,0,0)",
    ),
    "host_memory": (
        "out of bounds: read of 4 bytes, outside device memory",
        "block (0,0,0), thread (0,0,0)",
    ),
    "dynamic_past_the_end": (
        "out of bounds: write of 4 bytes, 0 bytes past the end of dynamic shared "
        "memory [256 bytes]",
        "block (0,0,0), thread (63,0,0)",
    ),
    "index_of_array": (
        "index 64 of 'float [64]'",
        "block (0,0,0), thread (63,0,0)",
    ),
    "int_product": (
        "overflowing product of 'int'",
        "block (0,0,0), thread (0,0,0)",
    ),
    "unwritten_shared": (
        "read before written: 4 bytes at shared memory",
        "block (0,0,0), thread (40,0,0)",
    ),
    "unwritten_by_this_block": (
        "read before written: 4 bytes at shared memory",
        "block (1,0,0), thread (63,0,0)",
    ),
    "unwritten_output": (
        "read before written: 4 bytes at y + 0",
        "block (0,0,0), thread (0,0,0)",
    ),
    "no_barrier": (
        "race: read of 4 bytes at shared memory, written by thread (0,0,0) of block "
        "(0,0,0)",
        "block (0,0,0), thread (1,0,0)",
    ),
    "no_second_barrier": (
        "race: write of 4 bytes at shared memory, read by several threads",
        "block (0,0,0), thread (0,0,0)",
    ),
    "shuffle_for_barrier": (
        "race: read of 4 bytes at shared memory, written by thread (30,0,0) of block "
        "(0,0,0)",
        "block (0,0,0), thread (31,0,0)",
    ),
    "warp_barrier_across_warps": (
        "race: read of 4 bytes at shared memory, written by thread (63,0,0) of block "
        "(0,0,0)",
        "block (0,0,0), thread (31,0,0)",
    ),
    "read_then_write": (
        "race: write of 4 bytes at shared memory, read by thread (3,0,0) of block "
        "(0,0,0)",
        "block (0,0,0), thread (5,0,0)",
    ),
    "two_readers": (
        "race: write of 4 bytes at shared memory, read by several threads",
        "block (0,0,0), thread (2,0,0)",
    ),
    "same_place_written": (
        "race: write of 4 bytes at y + 0, written by thread (0,0,0) of block (0,0,0)",
        "block (0,0,0), thread (1,0,0)",
    ),
    "race_of_blocks": (
        "race: write of 4 bytes at y + 0, written by thread (0,0,0) of block (0,0,0)",
        "block (1,0,0), thread (0,0,0)",
    ),
    "block_too_large": (
        "block of 1024x2x1 threads: 1 to 1024, at most 1024x1024x64",
        None,
    ),
    "block_too_deep": (
        "block of 1x1x65 threads: 1 to 1024, at most 1024x1024x64",
        None,
    ),
    "no_grid": (
        "grid of 0x1x1 blocks: at least 1, at most 2147483647x65535x65535",
        None,
    ),
    "grid_too_high": (
        "grid of 1x65536x1 blocks: at least 1, at most 2147483647x65535x65535",
        None,
    ),
    "shared_too_large": (
        "49153 bytes of dynamic shared memory: at most 49152",
        None,
    ),
}
OF_A_LAUNCH = {name for name, (_, thread) in ERRORS.items() if thread is None}


def place(marker):
    return f"wrong_kernels.cu:{LINE[marker]}"


def message_of(library, name):
    with Memory(library) as memory:
        x = memory.input("x", torch.arange(64.0))
        y, _ = memory.output("y", (64,), torch.float32)
        library.set_budget(100_000)
        with pytest.raises(Refused) as refused:
            library.call("run_wrong", name.encode(), *map(ctypes.c_void_p, (x, y)))
    return str(refused.value)


@pytest.mark.parametrize("name", ERRORS)
def test_message(wrong, name):
    what, thread = ERRORS[name]
    what = re.sub(r"@(\w+)", lambda marker: place(marker[1]), what)
    kernel = name if name in LINE else "nothing"
    if thread is None:
        expected = f"{what}; {kernel}, block (0,0,0), order ascending, seed 0"
    else:
        expected = (
            f"{what}; {kernel}, {thread} at {place(name)}, order ascending, seed 0"
        )
    assert message_of(wrong, name) == expected


@pytest.mark.parametrize("name", ERRORS)
def test_other_orders_find_it_too(wrong, name):
    for seed, order in enumerate(wrong.orders):
        wrong.set_order(order, seed)
        assert message_of(wrong, name).endswith(f"order {order}, seed {seed}")


def test_every_wrong_kernel_has_its_text():
    listed = re.findall(r"WRONG\((\w+)[,)]", "\n".join(SOURCE))
    assert set(listed) - {"name"} == set(ERRORS) - (OF_A_LAUNCH - {"deadlock"})
    assert set(listed) - {"name"} <= set(LINE)


def test_use_after_free(wrong):
    with Memory(wrong) as memory:
        x = memory.input("x", torch.arange(64.0))
        y, _ = memory.output("y", (64,), torch.float32)
        wrong.free(y)
        with pytest.raises(Refused) as refused:
            wrong.call("run_wrong", b"past_the_end", *map(ctypes.c_void_p, (x, y)))
    assert str(refused.value).startswith("use after free: write of 4 bytes at y + 4; ")


def test_first_thread_to_blame_shows_the_order(wrong):
    blamed = {}
    for order in wrong.orders:
        wrong.set_order(order, 3)
        text = message_of(wrong, "unwritten_output")
        blamed[order] = int(re.search(r"thread \((\d+),", text)[1])
    assert blamed["ascending"] == 0
    assert blamed["descending"] == 63
    assert blamed["warps reversed"] == 32
    assert blamed["random"] not in (0, 32, 63)


def test_a_seed_repeats_its_order(wrong):
    texts = set()
    for seed in (1, 1, 2, 3, 4):
        wrong.set_order("random", seed)
        texts.add(message_of(wrong, "unwritten_output"))
    assert len(texts) == 4
