"""budget="auto": let leave what the link hides."""

import contextlib

from gnnoffload.errors import OffloadError

_PROBES = (64 << 20, 8 << 20, 1 << 20)  # bytes; a full device has room for the last


class AutoBudget:
    """As much leaves as the link hides: X = 0.9 min(B_out T_f, B_in T_b); the rest
    stays.

    B are the measured rates of the link, T_f and T_b the last pass's seconds in forward
    and backward without its stalls. The first pass keeps everything and is measured.
    """

    def __init__(self, engine):
        self.engine = engine
        self.rates = None
        self.hidden = None  # X
        self.budget = None

    def learn(self, counters):
        """Takes a finished pass's counters."""
        if not counters["block_bytes"] or not counters["backward_seconds"]:
            return
        if self.rates is None:
            self.rates = self._measure()
        if self.rates is None:
            return  # no room to measure in: once more after the next pass
        rate_out, rate_in = self.rates
        forward = counters["forward_seconds"] - counters["stall_out"]
        backward = counters["backward_seconds"] - counters["stall_in"]
        self.hidden = 0.9 * max(0.0, min(rate_out * forward, rate_in * backward))
        self.budget = max(0, counters["block_bytes"] - int(self.hidden))

    def _measure(self):
        for probe in _PROBES:
            with contextlib.suppress(MemoryError, OffloadError):
                return self.engine.measure(probe)
        return None

    def apply(self):
        """Sets the engine's budget for the pass that begins."""
        if self.budget is not None:
            self.engine.set_budget(self.budget)
