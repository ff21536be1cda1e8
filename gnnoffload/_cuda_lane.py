"""What an engine for a CUDA device asks of torch.

The streams of the computation, the memory of its device, and whether there is one.
"""

import functools

import torch

from gnnoffload import _C
from gnnoffload.errors import DeviceError


@functools.cache
def absence():
    """Why no CUDA device can be used, a sentence; "" when one can."""
    if not _C.build_facts()["cuda"]:
        return "this gnnoffload was built without CUDA"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        from gnnoffload._gpu import gpu_facts

        return gpu_facts()["problem"] or "torch sees no CUDA device"
    return ""


def device_named(text):
    """The torch.device of a command line's ``--device``.

    Args:
        text: "cpu", "cuda" (the current device) or "cuda:1".

    Raises:
        DeviceError: there is no such device here; why not.

    >>> device_named("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device: must be cpu, cuda or cuda:N, got {text}")
    if device.type == "cpu":
        return device
    if absence():
        raise DeviceError(f"--device {text}: {absence()}")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"--device {text}: there are {count} CUDA devices")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def wait_for(device):
    """Waits until the device is idle; a CPU always is. For timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def current_device():
    """Its number."""
    return torch.cuda.current_device()


def arguments(device):
    """Of `_C.open_engine`, for CUDA device number `device`."""

    @functools.cache
    def stream_of(number):
        return torch.cuda.ExternalStream(number, device=device)

    def record_stream(tensor, stream):
        tensor.record_stream(stream_of(stream))

    return {
        "device": device,
        "tensor_device": torch.device("cuda", device),
        "stream": torch._C._cuda_getCurrentRawStream,
        "stream_args": (device,),
        "record_stream": record_stream,
    }


def total_bytes(device):
    """Memory of the device."""
    return torch.cuda.get_device_properties(device).total_memory


def half_of_free(device):
    """Half of what is free on the device or torch's to reuse: for a first pass."""
    free = torch.cuda.mem_get_info(device)[0]
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + cached) // 2


def memory_peaks(device):
    """What torch's allocator counts, for the report."""
    return {
        "peak_allocated": torch.cuda.max_memory_allocated(device),
        "peak_reserved": torch.cuda.max_memory_reserved(device),
    }
