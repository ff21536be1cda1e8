"""Golden vectors: what each device function we use answers, bit by bit; exp and log,
which no two mathematics libraries round alike, within ULPS.

    python tests/cuda_on_cpu/golden.py     compares the executor with the GPU here

Needs nvcc and torch with CUDA. Until it has run somewhere, the executor's answers are
those of the manuals (test_golden.py, test_warps.py), not those of a device.
"""

import ctypes
import os
import sys

import torch
from cuda_executor import (
    BUILD,
    C_FLAGS,
    CC,
    ROOT,
    Library,
    Memory,
    Refused,
    build,
    compile_one,
    run,
)

SOURCE = "tests/cuda_on_cpu/golden_kernels.cu"
# as gnn_dtype
DTYPES = [
    *[torch.float32, torch.float64, torch.bfloat16, torch.float16],
    *[torch.int32, torch.int64],
]
KINDS = ["__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"]
WIDTHS = [1, 2, 4, 8, 16, 32]
ULPS = 3  # the CUDA guide allows expf 2 and the others 1, glibc stays within 1
PATTERNS = torch.arange(2**16, dtype=torch.int32).to(torch.int16)  # all of them


def floats():
    """Every 16-bit number as a float, its neighbours, the ties between two of them, and
    random bits: NaNs, infinities and subnormals are among them."""
    exact = torch.cat((PATTERNS.view(torch.float16), PATTERNS.view(torch.bfloat16)))
    bits = torch.cat((exact[: 2**16].float(), exact[2**16 :].float())).view(torch.int32)
    ties = torch.cat([bits + d for d in (-1, 0, 1, 0xFFF, 0x1000, 0x1001, 0x8000)])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-(2**31), 2**31, (2**16,), generator=generator).int()
    return torch.cat((ties, noise)).view(torch.float32)


def questions():
    """(name, function, input, shape and dtype of the output, arguments)"""
    generator = torch.Generator().manual_seed(1)
    lanes = torch.randint(-1000, 1000, (32,), generator=generator)
    for i, dtype in enumerate(DTYPES):
        for kind, name in enumerate(KINDS):
            for width in WIDTHS:
                for argument in (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33):
                    yield (
                        f"{name} {dtype} width {width}: {argument}",
                        "shuffle",
                        lanes.to(dtype),
                        ((32,), dtype),
                        (kind, argument, width, i),
                    )
    votes = (lanes > 0).int()
    yield "guide", "guide", lanes.int(), ((3, 32), torch.int32), ()
    yield "votes", "vote", votes, ((3, 32), torch.int32), ()
    n = PATTERNS.numel()
    yield "widen", "widen_all", PATTERNS, ((2, n), torch.float32), (n,)
    x = floats()
    for dtype in (torch.float16, torch.bfloat16):
        args = (x.numel(), DTYPES.index(dtype))
        yield f"narrow to {dtype}", "narrow_all", x, (x.shape, dtype), args
    noise = torch.randint(-(2**31), 2**31, (128,), generator=generator).int()
    for dtype in (torch.float32, torch.float64):
        args = (x.numel(), DTYPES.index(dtype))
        output = ((3, x.numel()), dtype)
        yield f"exp, log, sqrt {dtype}", "functions", x.to(dtype), output, args
    yield "packs and bits", "packs_and_bits", noise, ((160,), torch.int32), ()


def on_executor(library, function, x, shape, dtype, args):
    with Memory(library) as memory:
        source = memory.input("x", x)
        address, y = memory.output("y", shape, dtype)
        library.call(function, *map(ctypes.c_void_p, (source, address)), *args)
        return y.clone()


def build_for_gpu(architecture):
    core = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/core/*.c"))]
    objects = [compile_one(CC, [*C_FLAGS], source) for source in core]
    target = BUILD / "golden-gpu.so"
    command = ["nvcc", "-shared", "-std=c++17", f"-arch={architecture}", "-Icsrc"]
    options = ["-Xcompiler", "-fPIC", "--forward-unknown-to-host-linker"]
    # nvcc does not quote for the linker: without the folder, which may have a space
    linked = [f"-Xlinker={os.path.relpath(path, ROOT)}" for path in objects]
    run([*command, *options, SOURCE, *linked, "-o", os.path.relpath(target, ROOT)])
    return target


def on_gpu(dll, function, x, shape, dtype, args):
    x, y = x.cuda(), torch.full(shape, -1, dtype=dtype, device="cuda")
    torch.cuda.synchronize()
    if getattr(dll, function)(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), *args):
        raise Refused(dll.gnn_message().decode())
    torch.cuda.synchronize()
    return y.cpu()


def differences(one, two, ulps=0):
    """How many elements differ by more than `ulps` units in the last place; one NaN is
    as good as another."""
    if not one.dtype.is_floating_point:
        return int((one != two).sum())
    apart = one != two
    if ulps:
        apart = (steps(one) - steps(two)).abs() > ulps
    return int((apart & ~(one.isnan() & two.isnan())).sum())


def steps(x):
    """The place of each number among those of its dtype, from 0."""
    bits = x.view({4: torch.int32, 8: torch.int64}[x.itemsize]).long()
    size = 2 ** (8 * x.itemsize - 1) - 1  # every bit but the sign
    return torch.where(bits < 0, -(bits & size), bits)


def main():
    executor = Library(build("golden", [SOURCE]))
    dll = ctypes.CDLL(str(build_for_gpu("native")))
    dll.gnn_message.restype = ctypes.c_char_p
    wrong = n = 0
    for name, function, x, (shape, dtype), args in questions():
        ours = on_executor(executor, function, x, shape, dtype, args)
        theirs = on_gpu(dll, function, x, shape, dtype, args)
        ulps = ULPS if function == "functions" else 0
        if different := differences(ours, theirs, ulps):
            print(f"{name}: {different} of {ours.numel()} differ")
        wrong, n = wrong + bool(different), n + 1
    device = torch.cuda.get_device_name()
    print(f"{n - wrong} of {n} golden vectors agree between the executor and {device}")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
