"""The exceptions of gnnoffload, and how a failure in C becomes one of them."""

from gnnoffload import _C


class GraphError(ValueError):
    """A graph is malformed; the text names argument, position, value and limit."""


class OffloadError(RuntimeError):
    """The offload engine was used wrongly or a tier refused (`on_full="raise"`)."""


class SpillError(OSError):
    """Reading or writing the spill file failed."""


class DeviceError(RuntimeError):
    """A device is missing or failed."""


_NAMED = {
    "GraphError": GraphError,
    "OffloadError": OffloadError,
    "SpillError": SpillError,
    "DeviceError": DeviceError,
    "ValueError": ValueError,
    "TypeError": TypeError,
    "NotImplementedError": NotImplementedError,
    "MemoryError": MemoryError,
}


def named(error: RuntimeError) -> Exception:
    """The exception that C named, for the RuntimeError of a failing op of ours.

    A dispatcher op written in C can raise a RuntimeError only. It runs on the calling
    thread, so the core's thread-local failure is the one that it raised.
    """
    name, message = _C.last_failure()
    if type(error) is RuntimeError and name and str(error).startswith(message):
        return _NAMED[name](message)
    return error
