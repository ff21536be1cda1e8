"""Says in one sentence when this Python, machine or installation cannot run gnnoffload.

Imported before anything else of the package; old Pythons must be able to read it.
"""

import importlib.util
import platform
import sys


def obstacle(
    version=sys.version_info,
    system=sys.platform,
    machine=platform.machine(),  # noqa: B008 it does not change
    pointer_max=sys.maxsize,
    has_module=importlib.util.find_spec,
):
    """What stands in the way, None when nothing does."""
    if tuple(version[:2]) < (3, 11):
        found = ".".join(str(part) for part in version[:3])
        return "gnnoffload needs Python 3.11 or newer; this is Python " + found
    machines = ("x86_64", "AMD64", "aarch64")
    if system != "linux" or machine not in machines or pointer_max < 2**32:
        return (
            "gnnoffload runs on 64-bit Linux on x86-64 or Arm; this is "
            f"{system} on {machine}"
        )
    if not has_module("torch"):
        return "gnnoffload needs torch 2.10 or newer: pip install torch"
    if not has_module("gnnoffload._C"):
        return (
            "gnnoffload._C is not built: run `pip install .` in the source tree, or "
            "`python setup.py build_ext --inplace` to use it from there"
        )
    return None


_text = obstacle()
if _text:
    raise ImportError(_text)
