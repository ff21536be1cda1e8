"""Activation offload: the context that moves saved tensors out and back in.

The engine is in C (csrc/offload/engine.c decides, csrc/torch/torch_hooks.c carries
out); this file parses arguments, keeps process-wide engines, and enters and leaves
passes.
"""

import atexit
import collections
import contextlib
import fnmatch
import functools
import os
import threading

import torch

from gnnoffload import _C, _cuda_lane
from gnnoffload._budget import AutoBudget
from gnnoffload._report import Report
from gnnoffload.config import (
    Share,
    default_host_limit,
    device_bytes,
    parse_bytes,
    parse_size,
    spill_directory,
)
from gnnoffload.errors import DeviceError

__all__ = ["keep", "offload"]

_ENGINES = 16  # process-wide engines kept for reuse
_HISTORY = 1000  # finished passes a lane remembers
_UNBOUNDED = 2**62

_push = torch._C._autograd._push_saved_tensors_default_hooks
_pop = torch._C._autograd._pop_saved_tensors_default_hooks


class _Lane:
    """One engine over one link, and the reports of its finished passes."""

    def __init__(self, settings):
        self.settings = settings = settings | {"host_limit": _host_limit(settings)}
        budget = settings["budget"]
        on_cuda = settings["store"] == "host"
        self.engine = _C.open_engine(
            store="cuda" if on_cuda else settings["store"],
            directory=settings["spill_dir"],
            limit=max(4096, settings["host_limit"]),  # a link has room for one page
            threads=0,
            direct=True,
            memory_backed=settings["memory_backed"],
            budget=self._first_budget(budget, on_cuda),
            out_window=settings["inflight"],
            in_window=settings["prefetch"],
            min_bytes=settings["min_bytes"],
            raise_on_full=settings["on_full"] == "raise",
            **(_cuda_lane.arguments(settings["device"]) if on_cuda else {}),
        )
        self.reports = collections.deque(maxlen=_HISTORY)
        self.auto = AutoBudget(self.engine) if budget == "auto" else None
        self.notes = {}  # number of a pass -> what was noticed when it was left

    def _first_budget(self, budget, on_cuda):
        """Of "auto", before anything was measured."""
        if budget != "auto":
            return budget
        return (
            _cuda_lane.half_of_free(self.settings["device"]) if on_cuda else _UNBOUNDED
        )

    def collect(self, wait=False):
        """Reports of all finished passes, the newest last.

        wait: also of those that the device has still to end.
        """
        for counters in self.engine.take_finished(wait):
            notes = self.notes.pop(counters["number"], {})
            if self.settings["store"] == "host":
                notes |= _cuda_lane.memory_peaks(self.settings["device"])
            report = Report({**counters, **notes}, self.settings, self.engine.state())
            self.reports.append(report)
            if self.auto is not None:
                self.auto.learn(counters)
        return self.reports


_lanes = collections.OrderedDict()
_lanes_lock = threading.Lock()


def _lane_for(settings):
    """The process-wide lane for equal settings."""
    key = tuple(settings.items())
    with _lanes_lock:
        lane = _lanes.get(key)
        if lane is None:
            lane = _lanes[key] = _Lane(settings)
        _lanes.move_to_end(key)
        while len(_lanes) > _ENGINES:  # saved tensors alive keep their engine
            _lanes.popitem(last=False)
        return lane


@atexit.register
def _shut_down():
    """Waits for copies under way; afterwards nothing touches a link."""
    for lane in list(_lanes.values()):
        with contextlib.suppress(Exception):
            lane.engine.shutdown()


def _forget_parents_engines():
    global _lanes_lock
    _lanes_lock = threading.Lock()
    _lanes.clear()


os.register_at_fork(after_in_child=_forget_parents_engines)


class offload:
    """Keep at most ``budget`` bytes of saved activations; move the rest away.

    On CUDA they go to page-locked host memory while the GPU computes, without a CUDA
    device to a file on disk.

    A reusable, re-entrant context manager and decorator for the forward pass and the
    loss; each entry is one *pass*. Gradients are bit-identical to training without it.

    Args:
        budget: bytes of saved activations that may stay: an int, ``"8GiB"``, ``"40%"``
            of the device (on CPU: of the memory this process may use), ``0`` (move
            everything that can be moved) or ``"auto"`` (move as much as the measured
            link hides behind the computation), the default on CUDA.
        min_bytes: storages below this size stay.
        host_limit: far-side bytes at most; default 80 % of the free memory or, with
            ``store="file"``, disk space, divided by ``LOCAL_WORLD_SIZE``.
        store: ``"host"`` (page-locked memory, for tensors of the CUDA device that is
            current when the context is entered), ``"file"`` (an unnamed spill file, for
            CPU tensors), ``"ram"`` (a second place in memory: for tests and benchmarks)
            or ``"auto"``: ``"host"`` where torch sees a CUDA device and ``spill_dir``
            is not given, else ``"file"``.
        spill_dir: directory of the spill file; default ``$GNNOFFLOAD_SPILL_DIR``, else
            the first of /var/tmp and the working directory that is not memory-backed.
        inflight: bytes on their way out at most (one tensor always fits).
        prefetch: bytes fetched ahead of their use at most; 0 fetches nothing ahead.
        on_full: what happens when the far side is full or a write fails: ``"keep"``
            keeps the tensor where it is and warns once, ``"raise"`` raises.

    Raises:
        ValueError: an argument has no meaning, or ``budget`` is missing on CPU.
        SpillError: the spill directory cannot be used.
        DeviceError: ``store="host"`` where there is no CUDA device to use.

    Memory:
        At most budget + inflight + prefetch + what the running node unpacked, except
        bytes that the report counts as owned or kept. ``inflight`` and ``prefetch``
        default to a sixteenth of the budget, between 16 and 256 MiB.

    Example:
        >>> import torch, gnnoffload as go
        >>> off = go.offload(budget=0, store="ram", min_bytes=1)
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with off:
        ...     loss = x.exp().exp().sum()
        >>> loss.backward()
        >>> off.report().bytes_out > 0
        True
    """

    def __init__(
        self,
        budget=None,
        *,
        min_bytes="1MiB",
        host_limit=None,
        store="auto",
        spill_dir=None,
        inflight=None,
        prefetch=None,
        on_full="keep",
    ):
        self._arguments = {
            "budget": budget,
            "min_bytes": min_bytes,
            "host_limit": host_limit,
            "store": store,
            "spill_dir": spill_dir,
            "inflight": inflight,
            "prefetch": prefetch,
            "on_full": on_full,
        }
        self._settings = _settings(**self._arguments)
        self._lanes = {}  # of this context, by device
        self._lane = self._lane_now()
        self._local = threading.local()

    # ---------------------------------------------------------------- entering, leaving

    def _lane_now(self):
        """The lane of the device that is current; None: the CPU's."""
        on_cuda = self._settings["store"] == "host"
        device = _cuda_lane.current_device() if on_cuda else None
        lane = self._lanes.get(device)
        if lane is None:
            settings = self._settings | {"device": device}
            if isinstance(settings["budget"], Share):
                total = _cuda_lane.total_bytes(device) if on_cuda else device_bytes()
                settings["budget"] = int(settings["budget"] * total)
            lane = self._lanes[device] = _lane_for(_with_windows(settings))
        return lane

    def _entries(self):
        if not hasattr(self._local, "entries"):
            self._local.entries = []
        return self._local.entries

    def _begin(self):
        """A pass; None while a CUDA graph is captured, in which nothing may move."""
        lane = self._lane = self._lane_now()
        if lane.engine.captured():
            return None
        if lane.auto is not None:
            lane.collect()
            lane.auto.apply()
        return lane.engine.begin()

    def _end(self, entry, failed=False):
        if entry is None:
            return
        counters = entry.counters()
        if counters is not None and len(self._lane.notes) < _HISTORY:
            self._lane.notes[counters["number"]] = {
                "grad_enabled": torch.is_grad_enabled()
            }
        entry.end(failed)

    @torch.compiler.disable
    def __enter__(self):
        entry = self._begin()
        _push(_pack_of(entry), _C.unpack)
        self._entries().append(entry)
        return self

    @torch.compiler.disable
    def __exit__(self, *exception):
        _pop()
        self._end(self._entries().pop(), exception[0] is not None)

    def __call__(self, function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with self:
                return function(*args, **kwargs)

        return wrapped

    def __deepcopy__(self, memo):
        return self  # a copied model shares the engine, as equal arguments do

    def __reduce__(self):
        return functools.partial(offload, **self._arguments), ()

    def __repr__(self):
        given = ", ".join(
            f"{name}={value!r}"
            for name, value in self._arguments.items()
            if value is not None
        )
        return f"offload({given})"

    # -------------------------------------------------------------------------- modules

    def attach(self, module, modules=None):
        """Enter the context in the forward of ``module``'s matching submodules.

        Args:
            module: an ``nn.Module``. One call of it is one pass.
            modules: shell pattern of submodule names, such as ``"processor.*"``; the
                outermost matches are taken. None: ``module`` itself.

        Returns:
            A handle whose ``remove()`` undoes it.
        """
        return _Attached(self, module, modules)

    # -------------------------------------------------------------------------- reports

    @property
    def history(self):
        """Reports of finished passes, oldest first (the last 1000)."""
        return list(self._lane.collect(wait=True))

    def report(self):
        """The report of the last finished pass; on CUDA it waits for the device."""
        reports = self._lane.collect(wait=True)
        if reports:
            return reports[-1]
        return Report.empty(self._lane.settings, self._lane.engine.state())

    def state(self):
        """Bytes that the engine holds now, by account."""
        return self._lane.engine.state()


def _pack_of(entry):
    return entry.pack if entry is not None else _C.keep_pack


class _Attached:
    """Forward hooks that enter the context. One call of the root is one pass."""

    def __init__(self, off, root, pattern):
        self.off = off
        self.names = _outermost(root, pattern)
        if not self.names:
            raise ValueError(f"attach: no submodule is named like {pattern!r}")
        self.local = threading.local()
        self.handles = []
        for name in self.names:
            self._hook(root.get_submodule(name), self._enter, self._leave)
        if self.names != [""]:
            self._hook(root, self._begin, self._end)

    def _hook(self, module, before, after):
        self.handles.append(module.register_forward_pre_hook(before))
        self.handles.append(module.register_forward_hook(after, always_call=True))

    def _stack(self, name):
        if not hasattr(self.local, name):
            setattr(self.local, name, [])
        return getattr(self.local, name)

    @torch.compiler.disable
    def _begin(self, module, args):
        self._stack("roots").append(self.off._begin())

    @torch.compiler.disable
    def _end(self, module, args, output):
        self.off._end(self._stack("roots").pop())

    @torch.compiler.disable
    def _enter(self, module, args):
        roots = self._stack("roots")
        own = not roots  # called outside the root's forward: a pass of its own
        entry = self.off._begin() if own else roots[-1]
        _push(_pack_of(entry), _C.unpack)
        self._stack("entries").append((entry, own))

    @torch.compiler.disable
    def _leave(self, module, args, output):
        entry, own = self._stack("entries").pop()
        _pop()
        if own:
            self.off._end(entry)

    def remove(self):
        """Takes the hooks off again."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def __deepcopy__(self, memo):
        return self


def _outermost(root, pattern):
    """Names of submodules that match and are not inside another match."""
    if pattern is None:
        return [""]
    names = []
    for name, _ in root.named_modules():
        inside = any(name.startswith(outer + ".") for outer in names)
        if name and not inside and fnmatch.fnmatchcase(name, pattern):
            names.append(name)
    return names


class keep:
    """Exempt a region from an enclosing ``offload``: what it saves stays where it is.

    Example:
        >>> import torch, gnnoffload as go
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with go.offload(budget=0, store="ram", min_bytes=1), go.keep():
        ...     loss = x.exp().sum()
        >>> loss.backward()
    """

    @torch.compiler.disable
    def __enter__(self):
        _push(_C.keep_pack, _C.unpack)
        return self

    @torch.compiler.disable
    def __exit__(self, *exception):
        _pop()


# ---------------------------------------------------------------------------- arguments


def _settings(
    budget, min_bytes, host_limit, store, spill_dir, inflight, prefetch, on_full
):
    """Arguments as numbers; every mistake is said here, before anything is opened."""
    if on_full not in ("keep", "raise"):
        raise ValueError(f'offload: on_full must be "keep" or "raise", got {on_full!r}')
    if store not in ("auto", "host", "file", "ram"):
        raise ValueError(
            f'offload: store must be "auto", "host", "file" or "ram", got {store!r}'
        )
    if store == "auto":
        on_cuda = spill_dir is None and _cuda_lane.absence() == ""
        store = "host" if on_cuda else "file"
    elif store == "host" and _cuda_lane.absence():
        raise DeviceError(f'offload: store="host": {_cuda_lane.absence()}')
    if budget is None and store == "host":
        budget = "auto"
    if budget is None:
        raise ValueError(
            "offload: say how much may stay in memory, for example budget='2GiB' or "
            "budget='auto'. Without a GPU the rest is written to a file in spill_dir, "
            "and writing gigabytes to disk is no default."
        )
    if store != "file" and spill_dir is not None:
        raise ValueError(f'offload: spill_dir has no meaning with store="{store}"')
    windows = {"inflight": inflight, "prefetch": prefetch}
    if host_limit is not None:
        host_limit = parse_bytes(host_limit, "offload: host_limit")
    return {
        "budget": parse_size(budget, "offload: budget"),
        "min_bytes": parse_bytes(min_bytes, "offload: min_bytes"),
        "host_limit": host_limit,
        "store": store,
        "spill_dir": spill_directory(spill_dir) if store == "file" else spill_dir,
        **{
            name: None if value is None else parse_bytes(value, f"offload: {name}")
            for name, value in windows.items()
        },
        "on_full": on_full,
        "memory_backed": os.environ.get("GNNOFFLOAD_MEMORY_BACKED") == "1",
    }


def _with_windows(settings):
    """The windows' defaults, which follow from the budget in bytes."""
    window, budget = 256 << 20, settings["budget"]
    if budget != "auto":
        window = min(window, max(16 << 20, budget // 16))
    given = {name: settings[name] for name in ("inflight", "prefetch")}
    return settings | {n: window if v is None else v for n, v in given.items()}


def _host_limit(settings):
    """The limit given, else the default of this moment.

    Not a part of what makes settings equal: free space changes from step to step.
    """
    if settings["host_limit"] is not None:
        return settings["host_limit"]
    if settings["store"] in ("ram", "host"):
        return default_host_limit()
    return _free_disk(settings["spill_dir"])


def _free_disk(directory):
    """80 % of what is free there, divided among the processes of this machine."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return _UNBOUNDED  # opening the file says what is wrong with the directory
    free = status.f_bavail * status.f_frsize
    return int(0.8 * free) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
