"""demo.json: the figures of a run, with what is needed to judge them."""

import os
import platform

import torch

from gnnoffload import __version__
from gnnoffload.demo.run import first_offload
from gnnoffload.demo.table import HIDDEN, direct_io

FIELDS = (
    "peak_resident_bytes",
    "peak_saved_bytes",
    "seconds_per_step",
    "bytes_out",
    "bytes_in",
    "hidden_fraction",
    "max_grad_diff",
    "max_grad",
)


def summary(found: dict) -> dict:
    """variants, rollout (at 12 steps), the limited runs, and the setting of it all."""
    rows = found["rows"]
    variants = {n: _fields(rows[n]) for n in ("stock", "plain", "checkpoint")}
    variants["offload"] = _fields(first_offload(rows))
    others = {n: _fields(row) for n, row in rows.items() if n not in variants}
    result = {
        "variants": variants,
        "rollout": None,
        "all_rows": variants | others,
        "limited": {
            "limit_bytes": found["limit"],
            **{n: _outcome(row) for n, row in found["limited"].items()},
        },
        "settings": found["settings"],
        "spill": {
            "file_system": found["file_system"],
            "direct_io": direct_io(found),
            "memory_claim": direct_io(found),
        },
        "definitions": {
            "peak_resident_bytes": "VmHWM above its value after the imports"
            if found["settings"]["device"] == "cpu"
            else "torch.cuda.max_memory_allocated",
            "hidden_fraction": HIDDEN,
            "max_grad_diff": "largest difference to plain's first-step gradients",
        },
        "offload_report": first_offload(rows)["report"],
        "machine": {
            "platform": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "torch": torch.__version__,
            "gnnoffload": __version__,
            "mmap_threshold_fixed": rows["plain"]["mmap_threshold_fixed"],
        },
    }
    if "skill" in found:
        skill = {k: v for k, v in found["skill"].items() if k != "fields"}
        result["rollout"] = dict(skill["12"])
        result["skill"] = skill
    return result


def _fields(row: dict) -> dict:
    return {
        **{name: row.get(name) for name in FIELDS},
        "budget": row["budget"],
        "same_bits": row["same_bits"],
    }


def _outcome(row: dict) -> dict:
    return {k: row.get(k) for k in ("finished", "error", "max_grad_diff")}
