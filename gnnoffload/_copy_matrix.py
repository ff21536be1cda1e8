"""`doctor`'s copy matrix: rates by kind of host memory, direction and size.

kinds   pinned, pageable, managed (advised to stay on the host), system (plain
        memory that the device reaches by itself)
ways    out (device to host), in, both at once (the sum)
sizes   64 KiB to 1 GiB
"""

from gnnoffload import _C
from gnnoffload.config import format_bytes

KINDS = ("pinned", "pageable", "managed", "system")
WAYS = ("out", "in", "both")
SIZES = [65536 * 4**k for k in range(8)]  # to 1 GiB
ENOUGH = 64 << 20  # a copy of this size shows a path's rate


def copy_matrix(device=0, sizes=SIZES, seconds=0.02, api=0):
    """Measure all of it; some seconds.

    Args:
        device: number of the CUDA device.
        sizes: bytes, ascending.
        seconds: spent on each entry, about.
        api: address of a table of CUDA calls, for tests; 0: the CUDA runtime's.

    Returns:
        dict: sizes, and per kind a list of [out, in, both] in bytes per second for each
        size (0.0: no memory for it), or a sentence why there is none; and what
        `best_path` and `smallest_copy` say of them.
    """
    found = {"sizes": list(sizes)}
    for kind in KINDS:
        try:
            rates = _C.copy_rates(kind, list(sizes), device, seconds, api)
            found[kind] = [list(row) for row in rates]
        except RuntimeError as error:
            found[kind] = str(error)
    found["best"] = best_path(found)
    found["smallest_copy"] = smallest_copy(found)
    return found


def best_path(found):
    """{way: kind} by the rate of the largest measured copy, pinned where equal.

    >>> rows = {"sizes": [1 << 20], "pageable": "absent", "managed": "absent"}
    >>> rows |= {"pinned": [[2e11, 3e11, 4e11]], "system": [[1e11, 3.5e11, 4e11]]}
    >>> best_path(rows)
    {'out': 'pinned', 'in': 'system', 'both': 'pinned'}
    """
    best = {}
    for column, way in enumerate(WAYS):
        rates = {kind: _rate(found, kind, column) for kind in KINDS}
        if any(rates.values()):
            best[way] = max(KINDS, key=lambda kind: rates[kind])
    return best


def smallest_copy(found, kind="pinned"):
    """The smallest size that reaches half of the kind's rate both single ways.

    What is smaller pays more for starting a copy than for its bytes: a lower bound for
    `min_bytes`. None where nothing was measured.
    """
    peaks = [_rate(found, kind, column) for column in (0, 1)]
    if not all(peaks):
        return None
    for size, row in zip(found["sizes"], found[kind], strict=True):
        if all(rate >= peak / 2 for rate, peak in zip(row, peaks, strict=False)):
            return size
    return None


def _rate(found, kind, column):
    """Of the largest size measured up to ENOUGH, in bytes per second; 0.0: none."""
    if isinstance(found[kind], str):
        return 0.0
    rows = zip(found["sizes"], found[kind], strict=True)
    measured = [row[column] for size, row in rows if row[column] and size <= ENOUGH]
    return measured[-1] if measured else 0.0


def render(found):
    """The matrix as lines for people, GB/s."""
    lines = [f"{'GB/s':<9}" + "".join(f"{format_bytes(s):>10}" for s in found["sizes"])]
    for kind in KINDS:
        if isinstance(found[kind], str):
            lines.append(f"{kind}: {found[kind]}")
            continue
        for column, way in enumerate(WAYS):
            numbers = [row[column] / 1e9 for row in found[kind]]
            cells = "".join(f"{n:>10.1f}" if n else f"{'-':>10}" for n in numbers)
            lines.append(f"{kind if way == 'out' else '':<9}{cells} {way}")
    best = ", ".join(f"{way}: {kind}" for way, kind in found["best"].items())
    lines.append(f"best path {best or 'unknown'}")
    if found["smallest_copy"]:
        size = format_bytes(found["smallest_copy"])
        lines.append(f"half of the pinned rate is reached by copies of {size}")
    return "\n".join(lines)
