"""The whole demonstration: every variant in its own process, then what they say."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gnnoffload import _C, config
from gnnoffload.demo import processes
from gnnoffload.demo.progress import progress

# name, variant, share of plain's saved bytes as the budget, timed steps or not
MEASURED = (
    ("stock", "stock", None, True),
    ("plain", "plain", None, True),
    ("plain again", "plain", None, False),
    ("checkpoint", "checkpoint", None, True),
    ("offload 1/2", "offload", 1 / 2, True),
    ("offload 1/4", "offload", 1 / 4, True),
)
# Others' ways to offload, which need page-locked memory to be what they are.
ON_CUDA = (
    ("save_on_cpu, pinned", "save_on_cpu", None, True),
    ("slide's hooks", "slide", None, True),
    ("slide's, async", "slide_async", None, True),
)
LIMITED = ("plain", "offload")
SKILL_WEIGHT = 20.0  # of training, in steps of the memory part


@dataclass
class Settings:
    """What the command line says; bytes are numbers here."""

    level: int = 5
    width: int = 64
    layers: int = 16
    steps: int = 2
    budget: int | None = None  # None: a half and a quarter of plain's saved bytes
    spill_dir: str | None = None
    device: str = "cpu"
    limit: int | None = None  # None: half way between offload's and plain's peak
    train_steps: int = 900
    seed: int = 0
    out: str = "out"


def run(settings: Settings) -> dict:
    """Runs all jobs and returns everything that table and picture need."""
    spill_dir = file_system = None
    if not on_cuda(settings):
        spill_dir = config.spill_directory(settings.spill_dir)
        file_system = _C.file_system(spill_dir)[0]
    found = {
        "settings": vars(settings) | {"spill_dir": spill_dir},
        "file_system": file_system,
        "rows": {},
        "samples": {},
        "limited": {},
    }
    rows = measured(settings)
    with tempfile.TemporaryDirectory(prefix="gnnoffload-demo-") as folder:
        weights = [2 + (settings.steps + 1 if timed else 0) for *_, timed in rows]
        total = sum(weights) + 2 * len(LIMITED)
        total += SKILL_WEIGHT if settings.train_steps else 0
        with progress(total) as bar:
            for (name, variant, share, timed), weight in zip(
                rows, weights, strict=True
            ):
                if share is not None:
                    name = name if settings.budget is None else "offload"
                budget = _budget(settings, share, found)
                row, samples = _measure(
                    settings, folder, name, variant, timed, budget, spill_dir,
                    lambda done, n=name, w=weight: bar.update(n, w, done),
                )  # fmt: skip
                row["budget"] = budget
                found["rows"][name], found["samples"][name] = row, samples
                seconds = row["seconds_per_step"] or row["first_step_seconds"]
                peak = config.format_bytes(row["peak_resident_bytes"])
                bar.finish(
                    name, weight, f"{peak} above baseline, {seconds:.2f} s a step"
                )
            _compare_gradients(found["rows"], folder)
            found["limit"] = settings.limit or _limit_between(found)
            for variant in LIMITED:
                name = f"{variant}, limited"
                row = _limited(settings, folder, variant, found, spill_dir)
                found["limited"][variant] = row
                said = "finished" if row["finished"] else f"stopped: {row['error']}"
                bar.finish(name, 2, said)
            if settings.train_steps:
                found["skill"] = _skill(settings, folder, bar)
    return found


def on_cuda(settings: Settings) -> bool:
    return settings.device.startswith("cuda")


def measured(settings: Settings) -> list[tuple]:
    """The rows of MEASURED that the settings ask for, with the others' on CUDA."""
    rows = [row for row in MEASURED if settings.budget is None or row[2] != 1 / 4]
    return rows + (list(ON_CUDA) if on_cuda(settings) else [])


def first_offload(rows: dict) -> dict:
    """The row that stands for offload: half the budget, or the one asked for."""
    return next(row for name, row in rows.items() if name.startswith("offload"))


def _budget(settings: Settings, share: float | None, found: dict) -> int | None:
    if share is None:
        return None
    return settings.budget or int(share * found["rows"]["plain"]["peak_saved_bytes"])


def _job(settings: Settings, variant: str, **more) -> list[str]:
    shape = {
        "level": settings.level,
        "width": settings.width,
        "layers": settings.layers,
        "device": settings.device,
    }
    return [json.dumps({"variant": variant, **shape, **more})]


def _measure(settings, folder, name, variant, timed, budget, spill_dir, on_progress):
    job = _job(
        settings,
        variant,
        steps=settings.steps if timed else 0,
        count=timed and variant != "offload",
        budget=budget,
        spill_dir=spill_dir,
        gradients=f"{folder}/{name.replace('/', '_')}.npy",
    )
    row, samples = processes.run("gnnoffload.demo.worker", job, on_progress)
    return row, row.pop("device_trace") or samples  # bytes on the device, or resident


def _limited(settings, folder, variant, found, spill_dir) -> dict:
    """One step with a hard limit on private memory, set before the model is built."""
    job = _job(
        settings,
        variant,
        steps=0,
        count=False,
        limit=found["limit"],
        budget=first_offload(found["rows"])["budget"] if variant == "offload" else None,
        spill_dir=spill_dir,
        gradients=f"{folder}/limited {variant}.npy",
    )
    row, _ = processes.run("gnnoffload.demo.worker", job, lambda share: None)
    row.pop("device_trace", None)
    if row["finished"]:
        plain = np.load(f"{folder}/plain.npy")
        row["max_grad_diff"] = _difference(np.load(job_path(job)), plain)
    return row


def job_path(job: list[str]) -> str:
    return json.loads(job[0])["gradients"]


def _compare_gradients(rows: dict, folder: str) -> None:
    """Each row's first-step gradients against plain's, from the files."""
    plain = np.load(f"{folder}/plain.npy")
    for name, row in rows.items():
        mine = np.load(f"{folder}/{name.replace('/', '_')}.npy")
        row["max_grad_diff"] = _difference(mine, plain)
        row["max_grad"] = float(np.abs(mine).max())
        row["same_bits"] = bool((mine.view(np.int32) == plain.view(np.int32)).all())


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


def _limit_between(found: dict) -> int:
    """Half way between what offload and plain had mapped, as RLIMIT_DATA counts it."""
    rows = found["rows"]
    offload = next(name for name in rows if name.startswith("offload"))
    if found["settings"]["device"] != "cpu":
        return (
            sum(rows[name]["peak_resident_bytes"] for name in (offload, "plain")) // 2
        )
    grown = [
        max(private for _, _, private in found["samples"][name])
        - rows[name]["baseline_data_bytes"]
        for name in (offload, "plain")
    ]
    return sum(grown) // 2


def _skill(settings: Settings, folder: str, bar) -> dict:
    out = f"{folder}/skill"
    arguments = ["--steps", str(settings.train_steps), "--seed", str(settings.seed)]
    processes.run(
        "gnnoffload.demo.skill",
        [*arguments, "--out", out],
        lambda share: bar.update("training", SKILL_WEIGHT, share),
    )
    result = json.loads(Path(f"{out}.json").read_text())
    with np.load(f"{out}.npz") as fields:
        result["fields"] = {name: fields[name] for name in fields.files}
    error = result["12"]["l2_model"]
    bar.finish("training", SKILL_WEIGHT, f"l2 {error:.3f} after 12 steps")
    return result
