"""What the demonstration found, as tables and sentences."""

import importlib.util

from gnnoffload.config import format_bytes
from gnnoffload.demo.run import first_offload
from gnnoffload.demo.skill import HOURS, MARKS

HIDDEN = "hidden = 1 - seconds waited for copies / seconds of copying"


def report(found: dict) -> None:
    """Prints everything: memory and time, the hard limit, skill."""
    print()
    _print_table(*_memory_rows(found), "Training one mesh GNN, one step")
    for sentence in sentences(found):
        print(sentence)
    if "skill" in found:
        print()
        _print_table(*_skill_rows(found["skill"]), "Error after a rollout (l2)")
        for sentence in _skill_sentences(found["skill"]):
            print(sentence)
    print("\nThis is a memory demo, not a weather model.")


def sentences(found: dict) -> list[str]:
    """The claims, each with its number; those that do not hold say so."""
    rows, settings = found["rows"], found["settings"]
    offload, plain = first_offload(rows), rows["plain"]
    on_cpu = settings["device"] == "cpu"
    said = [
        f"peak: VmHWM of the process above its value after the imports "
        f"({format_bytes(plain['baseline_bytes'])}), {_threshold(plain)}."
        if on_cpu
        else f"peak: most bytes that torch had allocated on {settings['device']}.",
        f"saved: most bytes kept alive for backward; {HIDDEN};",
        "grad diff: largest difference to plain's gradients of the first step (0: same "
        "bits).",
        f"Spill file in {settings['spill_dir']} ({found['file_system']}), "
        f"{'direct I/O' if direct_io(found) else 'through the page cache'}."
        if on_cpu
        else "What leaves goes to page-locked host memory.",
    ]
    if direct_io(found):
        said.append(
            f"Offload at {format_bytes(offload['budget'])}: "
            f"{_ratio(offload, plain, 'peak_resident_bytes')}x the peak of plain at "
            f"{_ratio(offload, plain, 'seconds_per_step')}x its time."
        )
    else:
        said.append(
            "No memory claim is made: without direct I/O what leaves the process stays "
            "in the page cache."
        )
    said.append(_against_checkpoint(rows["checkpoint"], offload))
    said.append(_bits(rows))
    return said + [_limited(name, row, found) for name, row in found["limited"].items()]


def direct_io(found: dict) -> bool:
    return not first_offload(found["rows"])["report"]["page_cache"]


def _memory_rows(found: dict) -> tuple[list[str], list[list[str]]]:
    header = ["", "peak", "x plain", "saved", "s/step", "x plain"]
    header += ["out", "in", "hidden", "grad diff"]
    plain, body = found["rows"]["plain"], []
    for name, row in found["rows"].items():
        cells = dict.fromkeys(("saved", "seconds", "slower", "out", "in", "hidden"), "")
        if row["seconds_per_step"] is not None:  # not the control row of one step
            cells["saved"] = format_bytes(row["peak_saved_bytes"])
            cells["seconds"] = f"{row['seconds_per_step']:.2f}"
            cells["slower"] = _ratio(row, plain, "seconds_per_step")
        if row["bytes_out"]:
            cells["out"] = format_bytes(row["bytes_out"])
            cells["in"] = format_bytes(row["bytes_in"])
            cells["hidden"] = f"{100 * row['hidden_fraction']:.0f} %"
        peak = format_bytes(row["peak_resident_bytes"])
        lower = _ratio(row, plain, "peak_resident_bytes")
        difference = "0" if row["same_bits"] else f"{row['max_grad_diff']:.0e}"
        body.append([name, peak, lower, *cells.values(), difference])
    return header, body


def _ratio(row: dict, other: dict, key: str) -> str:
    return f"{row[key] / other[key]:.2f}"


def _threshold(row: dict) -> str:
    if row["mmap_threshold_fixed"]:
        return "glibc's mmap threshold fixed at 64 KiB"
    return "mmap threshold not fixed (no glibc)"


def _against_checkpoint(checkpoint: dict, offload: dict) -> str:
    ratio = offload["seconds_per_step"] / checkpoint["seconds_per_step"]
    if ratio < 1:
        return f"Offload takes {ratio:.2f}x the time of checkpointing every block."
    return f"Offload is slower than checkpointing every block: {ratio:.2f}x its time."


def _bits(rows: dict) -> str:
    names = [name for name in rows if name.startswith("offload")]
    if all(rows[name]["same_bits"] for name in names):
        return "First-step gradients with offload are plain's, bit for bit."
    return "FIRST-STEP GRADIENTS WITH OFFLOAD ARE NOT PLAIN'S: this is a defect."


def _limited(name: str, row: dict, found: dict) -> str:
    limit = format_bytes(found["limit"])
    start = f"Limited to {limit} above the imports (RLIMIT_DATA), {name}"
    if found["settings"]["device"] != "cpu":
        start = f"With {limit} of the device's memory for torch, {name}"
    if row["finished"]:
        return f"{start} finished its step."
    return f"{start} was stopped: {row['error']}"


def _skill_rows(skill: dict) -> tuple[list[str], list[list[str]]]:
    header = ["steps", "hours", "model", "persistence", "upwind"]
    body = [
        [str(mark), f"{mark * HOURS:g}"]
        + [f"{skill[str(mark)][f'l2_{who}']:.3f}" for who in header[2:]]
        for mark in MARKS
    ]
    return header, body


def _skill_sentences(skill: dict) -> list[str]:
    at = skill["12"]
    share = at["l2_model"] / at["l2_persistence"]
    return [
        f"Level {skill['level']}, width {skill['width']}, {skill['layers']} layers, "
        f"{skill['steps']} training steps in {skill['train_seconds']:.0f} s, seed "
        f"{skill['seed']}; axis and field not trained on.",
        f"At 12 steps the model's error is {share:.2f} of persistence"
        + ("." if share <= 0.5 else ": more than the half that we ask for."),
    ]


def _print_table(header: list[str], body: list[list[str]], title: str) -> None:
    if importlib.util.find_spec("rich"):
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False
        )
        for k, name in enumerate(header):
            table.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
        for row in body:
            table.add_row(*row)
        # Lines longer than the terminal are better than cells cut short.
        Console(width=max(120, Console().width)).print(table)
        return
    print(title)
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    for row in [header, ["-" * w for w in widths], *body]:
        cells = [cell.rjust(w) for cell, w in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
