"""GPU facts without CUDA in our build: what the driver library says by itself.

No context is made on any device. "No GPU", "no driver", "a driver that does not start"
and "a driver too old for our CUDA runtime" are four answers, never mixed up.
"""

import ctypes
from pathlib import Path

from gnnoffload import _C

SUCCESS, NO_DEVICE = 0, 100
ATTRIBUTES = {
    "compute_major": 75,
    "compute_minor": 76,
    "copy_engines": 40,
    "integrated": 18,
    "pageable_memory_access": 88,
    "host_page_tables": 100,
    "memory_is_numa_node": 130,
    "numa_node": 131,
    "host_numa_node": 134,
}


def memory_model(device):
    """How a device and the host see each other's memory, from its attributes alone.

    Args:
        device: one of `gpu_facts()["devices"]`.

    Returns:
        "integrated" (one memory), "hardware coherent" (the device walks the host's page
        tables, as over NVLink-C2C), "software coherent" (it reads pageable memory by
        faults) or "discrete".
    """
    if device["integrated"]:
        return "integrated"
    if not device["pageable_memory_access"]:
        return "discrete"
    return "hardware coherent" if device["host_page_tables"] else "software coherent"


def gpu_facts(load=ctypes.CDLL):
    """Ask libcuda.so.1 for driver version and devices.

    Args:
        load: loads a shared library by name, for tests.

    Returns:
        dict: driver_version (13000 is CUDA 13.0; 0: no driver), driver_release,
        devices (list of dicts), problem (why `gnnoffload` uses no GPU; "" if it can).
    """
    facts = {"driver_version": 0, "driver_release": _driver_release(), "devices": []}
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return facts | {"problem": _C.cuda_absence(0, 0)}
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    facts["driver_version"] = version.value
    started = cuda.cuInit(0)
    if started not in (SUCCESS, NO_DEVICE):
        name = _error_name(cuda, started)
        problem = f"the NVIDIA driver is there but does not start: {name}"
        return facts | {"problem": problem}
    facts["devices"] = _devices(cuda) if started == SUCCESS else []
    problem = _C.cuda_absence(version.value, len(facts["devices"]))
    return facts | {"problem": problem}


def _devices(cuda):
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return [_device(cuda, index) for index in range(count.value)]


def _device(cuda, index):
    handle, total = ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    facts = {"name": name.value.decode(), "memory": total.value}
    for key, number in ATTRIBUTES.items():
        value = ctypes.c_int(0)
        known = cuda.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
        facts[key] = value.value if known == SUCCESS else None
    if not facts.pop("memory_is_numa_node"):
        facts["numa_node"] = None
    return facts | {"memory_model": memory_model(facts)}


def _error_name(cuda, error):
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(error, ctypes.byref(text))
    return f"{text.value.decode()} ({error})" if text.value else f"error {error}"


def _driver_release():
    """The driver's own number, such as 580.65.06; None without one."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    words = [word for word in line.split() if word[:1].isdigit() and "." in word]
    return words[0] if words else None
