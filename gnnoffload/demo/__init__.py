"""The demonstration: `python -m gnnoffload demo`.

Trains one mesh GNN with and without activation offload, each variant in a process of
its own, and shows that memory fell while no bit of a gradient changed. A memory demo,
not a weather model.
"""

import argparse
import json
from pathlib import Path

from gnnoffload import config, offload
from gnnoffload._cuda_lane import device_named
from gnnoffload.errors import DeviceError, SpillError


def main(argv: list[str] | None = None) -> int:
    """Runs it; writes demo.json and demo.png. Returns the exit status."""
    # Imported here because the jobs run as `python -m gnnoffload.demo.<job>`.
    from gnnoffload.demo import processes, run, table
    from gnnoffload.demo.summary import summary

    parser = _parser()
    settings = run.Settings(**_settings(parser, parser.parse_args(argv)))
    try:
        found = run.run(settings)
    except KeyboardInterrupt:
        print("\nstopped; nothing is left running")
        return 130
    except (SpillError, processes.JobError) as error:
        print(f"demo: {error}")
        return 1
    table.report(found)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(summary(found), indent=2) + "\n")
    print(f"wrote {out / 'demo.json'}")
    try:
        from gnnoffload.demo.picture import draw
    except ImportError:
        print("no picture: pip install gnnoffload[plot]")
    else:
        draw(found, out / "demo.png")
        print(f"wrote {out / 'demo.png'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gnnoffload demo", description=__doc__.split("\n\n")[1]
    )
    number = {"type": int, "metavar": "N"}
    add = parser.add_argument
    add("--level", default=5, help="finest level of the mesh", **number)
    add("--width", default=64, help="of node and edge states", **number)
    add("--layers", default=16, help="blocks of the processor", **number)
    add("--steps", default=2, help="timed steps of each variant", **number)
    add("--budget", help='bytes to keep, as "500MiB" (default: half and a quarter)')
    add("--spill-dir", help="where the spill file goes")
    add("--limit", help="hard limit for the last part (default: half way)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (the skill part: cpu)")
    add(
        "--train-steps",
        default=900,
        help="of the skill part; 0 leaves it out",
        **number,
    )
    add("--seed", default=0, help="of the skill part", **number)
    add("--out", default="out", help="folder for demo.json and demo.png")
    return parser


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict:
    """The options, checked; a mistake ends the process with one line."""
    given = vars(options)
    try:
        given["device"] = str(device_named(given["device"]))
    except DeviceError as error:
        parser.error(str(error))
    for name, least, most in (
        ("level", 1, 9),
        ("width", 1, 4096),
        ("layers", 1, 1000),
        ("steps", 1, 10**6),
        ("train_steps", 0, 10**9),
    ):
        if not least <= given[name] <= most:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: must be {least} to {most}, got {given[name]}")
    try:
        for name in ("budget", "limit"):
            if given[name] is not None:
                given[name] = config.parse_bytes(given[name], f"--{name}")
        store = "file" if given["device"] == "cpu" else "host"
        offload(budget=0, store=store, spill_dir=options.spill_dir)  # can it be used?
    except (ValueError, TypeError, SpillError, DeviceError) as error:
        parser.error(str(error))
    return given
