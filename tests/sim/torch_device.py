"""torch on the simulated machine: CPU tensors stand for device tensors.

Memory comes from the simulator's caching allocator, and a dispatch mode reports every
aten or gnnoffload op as a kernel on the current stream, with the bytes that its schema
says it reads and writes. An op is computed when it is issued: first the simulator makes
happen whatever the stream waits for, so what the stream does not wait for may not have
happened yet, and then the op reads poison.
"""

import contextlib
import ctypes
import functools
from unittest import mock

import torch
from sim_build import HERE, build
from simulator import CudaError, Machine, Memory, ptr, ranges, u64
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gnnoffload import _C, _cuda_lane, _offload


@functools.cache
def memory():
    root = torch.__path__[0]
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    flags = (f"-I{root}/include", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-Wno-error")
    libraries = (f"-L{root}/lib", "-lc10", f"-Wl,-rpath,{root}/lib")
    path = build("libtorch_memory.so", [HERE / "torch_memory.cpp"], flags, libraries)
    lib = ctypes.CDLL(str(path))
    lib.torch_memory_install.argtypes = [ptr, ptr]
    lib.torch_memory_stream.argtypes = [u64]
    lib.torch_memory_current.restype = u64
    return lib


class Device:
    """One machine whose device memory is torch's; use as a context manager."""

    def __init__(self, mode="lazy", seed=0, **settings):
        self.m = Machine(mode, seed, **settings)
        self.m.lib.sim_set_fail(_C.fail_address())
        self.memory = memory()
        self.table = ctypes.cast(self.m.lib.gnn_sim_api(), ptr).value

    def __enter__(self):
        lib = self.m.lib
        alloc, free = (ctypes.cast(f, ptr) for f in (lib.sim_alloc, lib.sim_free))
        self.memory.torch_memory_install(alloc, free)
        self.memory.torch_memory_stream(0)
        self.memory.torch_memory_switch(1)
        self.launches = Launches(self)
        self.launches.__enter__()
        return self

    def __exit__(self, *exception):
        self.launches.__exit__(*exception)
        self.memory.torch_memory_switch(0)
        self.m.lib.sim_set_fail(ctypes.cast(self.m.lib.gnn_fail, ptr))

    @property
    def current(self):
        return self.memory.torch_memory_current()

    @contextlib.contextmanager
    def on(self, stream):
        """As torch.cuda.stream: ops and new tensors belong to that stream."""
        before = self.current
        self.memory.torch_memory_stream(stream)
        try:
            yield
        finally:
            self.memory.torch_memory_stream(before)

    def record_stream(self, tensor, stream):
        self.m.lib.sim_record_stream(tensor.untyped_storage().data_ptr(), stream)

    def engine(
        self, budget=0, out_window=0, in_window=0, min_bytes=1, device=0, **settings
    ):
        """The real engine over the real link_cuda over this machine."""
        options = {"limit": 1 << 30, "raise_on_full": False, **settings}
        return _C.open_engine(
            store="cuda",
            directory=None,
            threads=0,
            direct=False,
            memory_backed=False,
            budget=budget,
            out_window=out_window,
            in_window=in_window,
            min_bytes=min_bytes,
            device=device,
            api=self.table,
            tensor_device=torch.device("cpu"),
            stream=self.memory.torch_memory_current,
            stream_args=(),
            record_stream=self.record_stream,
            **options,
        )


@contextlib.contextmanager
def as_cuda(d, api=None):
    """`go.offload(store="host")` runs on the simulated machine `d`.

    api: address of a table in front of the machine's.
    """
    table = api or d.table
    arguments = {
        "device": 0,
        "api": table,
        "tensor_device": torch.device("cpu"),
        "stream": d.memory.torch_memory_current,
        "stream_args": (),
        "record_stream": d.record_stream,
    }
    answers = {
        "absence": lambda: "",
        "current_device": lambda: 0,
        "arguments": lambda device: arguments,
        "total_bytes": lambda device: d.m.profile.device_bytes,
        "half_of_free": lambda device: 1 << 30,
        "memory_peaks": lambda device: {"peak_allocated": 7, "peak_reserved": 8},
    }
    with mock.patch.multiple(_cuda_lane, **answers):
        try:
            yield
        finally:
            close_lanes()


def close_lanes():
    """Shuts down every engine that keeps its tensors in page-locked memory."""
    for key, lane in list(_offload._lanes.items()):
        if lane.settings["store"] == "host":
            lane.engine.shutdown()
            del _offload._lanes[key]


@contextlib.contextmanager
def offload(engine):
    """What gnnoffload.offload does, over this engine."""
    entry = engine.begin()
    torch._C._autograd._push_saved_tensors_default_hooks(entry.pack, _C.unpack)
    failed = True
    try:
        yield entry
        failed = False
    finally:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        entry.end(failed)


def extent(tensor):
    """The bytes that a tensor can reach."""
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return None
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return Memory(tensor.data_ptr(), (last + 1) * tensor.element_size())


class Launches(TorchDispatchMode):
    """Reports each op as a kernel on the current stream."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        lib, stream = self.device.m.lib, self.device.current
        lib.sim_launch_begin(stream)
        out = func(*args, **kwargs)
        reads, writes = footprint(func._schema, args, kwargs, out)
        if reads or writes:
            name = func._schema.name.encode()
            lib.sim_launch_end(stream, name, *ranges(reads, writes))
        return out


def footprint(schema, args, kwargs, out, on="cpu"):
    """Bytes read and written on devices of that type.

    A view reads nothing, what is returned new is written.
    """
    returns = [r.alias_info for r in schema.returns]
    if any(a is not None and not a.is_write for a in returns):
        return [], []
    reads, writes = [], []
    given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)}
    for argument in schema.arguments:
        value = given.get(argument.name, kwargs.get(argument.name))
        tensors = [t for t in tree_leaves(value) if torch.is_tensor(t)]
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes += tensors
        reads += tensors
    if "empty" not in schema.name:
        writes += [t for t in tree_leaves(out) if torch.is_tensor(t)]
    there = [[t for t in ts if t.device.type == on] for ts in (reads, writes)]
    return [[m for m in map(extent, ts) if m] for ts in there]


__all__ = ["CudaError", "Device", "extent", "offload"]
