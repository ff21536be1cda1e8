"""budget="auto": let leave what the link hides."""

_PROBE_BYTES = 64 << 20


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
            self.rates = self.engine.measure(_PROBE_BYTES)
        rate_out, rate_in = self.rates
        forward = counters["forward_seconds"] - counters["stall_out"]
        backward = counters["backward_seconds"] - counters["stall_in"]
        self.hidden = 0.9 * max(0.0, min(rate_out * forward, rate_in * backward))
        self.budget = max(0, counters["block_bytes"] - int(self.hidden))

    def apply(self):
        """Sets the engine's budget for the pass that begins."""
        if self.budget is not None:
            self.engine.set_budget(self.budget)
