"""What an engine for a CUDA device asks of torch.

The streams of the computation, the memory of its device, and whether there is one.
"""

import functools

import torch

from gnnoffload import _C


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


def current_device():
    """Its number."""
    return torch.cuda.current_device()


def arguments(device):
    """Of `_C.open_engine`, for CUDA device number `device`."""

    def record_stream(tensor, stream):
        tensor.record_stream(torch.cuda.ExternalStream(stream, device=device))

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
