"""What an offload pass did: counters, a table for people, and why nothing moved."""

import resource

from gnnoffload.config import format_bytes

__all__ = ["Report"]


class Report:
    """Counters of one finished pass, as attributes (``report.bytes_out``) and as a
    table.

    ``hidden_fraction`` is 1 - stall / link busy time: 1 when no copy was waited for,
    None when there was no copy.
    """

    def __init__(self, counters, settings, state):
        self._counters = dict(counters)
        self._settings = dict(settings)
        self._counters["store"] = settings["store"]
        self._counters["min_bytes"] = settings["min_bytes"]
        self._counters["tier_bytes"] = state["tier_bytes"]
        self._counters["store_high_water"] = state["slot_peak"]
        self._counters["page_cache"] = bool(state["page_cache"])
        self._counters["peak_resident_os"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )

    @classmethod
    def empty(cls, settings, state):
        """A report for a context in which no pass has finished."""
        return cls({"number": 0}, settings, state)

    def __getattr__(self, name):
        counters = self.__dict__.get("_counters", {})
        if name in counters:
            return counters[name]
        if name.startswith("_") or counters.get("number"):
            raise AttributeError(f"a report has no {name!r}")
        return 0  # no pass has finished

    @property
    def stall(self):
        """Seconds the host or a compute stream waited for copies."""
        return self.stall_out + self.stall_in

    @property
    def busy(self):
        """Seconds during which copies were under way, both directions added."""
        return self.busy_out + self.busy_in

    @property
    def hidden_fraction(self):
        """1 - stall / busy, or None without copies."""
        return max(0.0, 1 - self.stall / self.busy) if self.busy > 0 else None

    def to_dict(self):
        """All counters, the derived ones included, as plain Python values."""
        derived = {
            "hidden_fraction": self.hidden_fraction,
            "nothing_moved_because": self.nothing_moved_because(),
        }
        return {**self._counters, **derived}

    def nothing_moved_because(self):
        """A sentence, or None when something moved (or was on its way)."""
        if not self.number:
            return "no pass has finished (a pass ends when its graph is gone)"
        if self.bytes_out:
            return None
        if not self.saves and not self._counters.get("grad_enabled", True):
            return "grad mode was off: nothing is saved for backward"
        if not self.saves:
            return "nothing was saved for backward inside the context"
        if self.checkpoint_saves:
            return (
                f"a checkpoint inside the context hides what its region saves: "
                f"only its inputs were seen, {format_bytes(self.checkpoint_bytes)}"
            )
        if not self.blocks and self.skipped.get("device"):
            where = "the CUDA device" if self.store == "host" else "the CPU"
            return (
                f'store="{self.store}" moves tensors of {where}, and '
                f"{self.skipped['device']} saved ones are elsewhere"
            )
        if not self.blocks:
            return (
                f"no saved tensor that may move has min_bytes = "
                f"{format_bytes(self.min_bytes)} or more"
            )
        if self.full or self.failed_writes:
            return "the far side was full or failed"
        if self.peak_counted <= self.budget and not self.owned:
            return (
                f"the budget was not reached: {format_bytes(self.peak_counted)} of "
                f"{format_bytes(self.budget)}"
            )
        if self.owned:
            return (
                f"somebody else holds what was saved ({self.owned} tensors, "
                f"{format_bytes(self.owned_bytes)}): copying it would free nothing"
            )
        return "what was over the budget died before it could leave"

    # ----------------------------------------------------------------------------- text

    def _rows(self):
        size = format_bytes
        yield "saved tensors", f"{self.saves}, {size(self.saved_bytes)}"
        yield (
            "blocks",
            f"{self.blocks}, {size(self.block_bytes)} (budget {size(self.budget)})",
        )
        yield "moved out", f"{self.copies_out} copies, {size(self.bytes_out)}"
        yield (
            "moved in",
            f"{self.copies_in} copies, {size(self.bytes_in)}, "
            f"{self.prefetched} ahead, {self.late} waited for",
        )
        hidden = self.hidden_fraction
        share = "no copies" if hidden is None else f"{100 * hidden:.0f} % hidden"
        yield (
            "stalls",
            f"{self.stall_out:.3f} s out, {self.stall_in:.3f} s in; {share} "
            f"(1 - stall / {self.busy:.3f} s link busy)",
        )
        yield "forwarded", f"{self.forwarded}; dropped clean: {self.dropped_clean}"
        yield "deduplicated", f"{self.deduplicated}, {size(self.deduplicated_bytes)}"
        yield "owned elsewhere", f"{self.owned}, {size(self.owned_bytes)}"
        for reason, count in sorted(self.skipped.items()):
            yield (
                f"skipped: {reason}",
                f"{count}, {size(self.skipped_bytes.get(reason, 0))}",
            )
        if self.full or self.failed_writes or self.failed_reads:
            yield (
                "kept: far side full",
                f"{self.full}, {size(self.full_bytes)}; failed writes "
                f"{self.failed_writes}, failed reads {self.failed_reads}",
            )
        if self.poisoned:
            yield "changed in place", f"{self.poisoned} blocks"
        if self.over_budget > 0:
            yield "over budget", size(self.over_budget)
        yield (
            "peaks",
            f"engine {size(self.peak_counted)} (with owned {size(self.peak_held)}), "
            f"process {size(self.peak_resident_os)}",
        )
        if self._counters.get("peak_allocated"):
            yield (
                "device memory",
                f"peak allocated {size(self.peak_allocated)}, reserved "
                f"{size(self.peak_reserved)}; page-locked {size(self.tier_bytes)}",
            )
        yield (
            "store",
            f"{self.store}, high water {size(self.store_high_water)}, live peak "
            f"{size(self.peak_out)}"
            + (", through the page cache" if self.page_cache else ""),
        )

    def _histogram(self):
        widest = max((n for _, _, n in self.size_classes), default=1) or 1
        marked = False
        for low, count, n in self.size_classes:
            if not marked and 2 * low > self.min_bytes:
                marked = True
                yield f"  {'':>9}  -- min_bytes = {format_bytes(self.min_bytes)} --"
            bar = "#" * max(1, round(30 * n / widest))
            text = f"{format_bytes(low):>9}+ {count:6d} saves {format_bytes(n):>11}"
            yield f"  {text} {bar}"

    def __str__(self):
        reason = self.nothing_moved_because()
        if not self.number:
            return f"offload: nothing moved because {reason}"
        lines = [f"offload, pass {self.number}"]
        if reason:
            lines.append(f"  nothing moved because {reason}")
        lines += [f"  {name:<20} {text}" for name, text in self._rows()]
        lines += ["  saved tensors by size", *self._histogram()]
        return "\n".join(lines)

    __repr__ = __str__
