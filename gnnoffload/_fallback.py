"""The ledger of fast paths: which layer took its fast path, which did not, and why.

A fallback is never silent (law 11). `GNNOFFLOAD_LOG=fallback` prints each (layer,
reason) the first time it happens; `GNNOFFLOAD_FALLBACK=error` makes every one a
FallbackError. Both variables are read at each fallback, so they may change while a
program runs. Under torch.compile a fallback is noted once, while the graph is traced.
"""

import os
import sys
from collections import Counter

import torch

_fast = Counter()  # layer name -> calls
_slow = Counter()  # (layer name, reason) -> calls


class FallbackError(RuntimeError):
    """A fast path was not taken while GNNOFFLOAD_FALLBACK=error."""


def count_fast(layer):
    """Counts one call served by the fast path; `layer` is the class name."""
    _fast[layer] += 1


@torch.compiler.assume_constant_result
def note(layer, reason):
    """Counts one call of `layer` (a class name) that its fast path did not serve."""
    _slow[layer, reason] += 1
    text = f"{layer}: fast path not taken: {reason}"
    if os.environ.get("GNNOFFLOAD_FALLBACK") == "error":
        raise FallbackError(f"{text} (GNNOFFLOAD_FALLBACK=error)")
    wants_log = "fallback" in os.environ.get("GNNOFFLOAD_LOG", "").split(",")
    if wants_log and _slow[layer, reason] == 1:
        print(f"gnnoffload: {text}", file=sys.stderr)


def counts():
    """Calls so far: `{layer: {"fast": n, "fallback": {reason: n}}}`."""
    layers = sorted({*_fast, *(layer for layer, _ in _slow)})
    result = {name: {"fast": _fast[name], "fallback": {}} for name in layers}
    for (layer, reason), n in sorted(_slow.items()):
        result[layer]["fallback"][reason] = n
    return result


def reset():
    """Forgets all calls, and that a reason has been printed."""
    _fast.clear()
    _slow.clear()


def table(allowed=()):
    """The counts as text; a reason that starts with one of `allowed` is marked.

    Returns
    -------
    str, one line a layer: fast calls, fallbacks, share served by the fast path, then
    one line a reason.
    """
    lines = []
    for layer, row in counts().items():
        slow = sum(row["fallback"].values())
        share = row["fast"] / max(1, row["fast"] + slow)
        lines.append(
            f"{layer:<12} fast {row['fast']:>6}  fallback {slow:>5}  {share:.1%}"
        )
        for reason, n in row["fallback"].items():
            mark = " (by design)" if reason.startswith(tuple(allowed)) else ""
            lines.append(f"{'':<12} {n:>5} x {reason}{mark}")
    return "\n".join(lines)
