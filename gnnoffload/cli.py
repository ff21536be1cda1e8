"""The command line: `python -m gnnoffload doctor | demo | bench`."""

import argparse
import ast
import json
import runpy
import sys
from pathlib import Path

EPILOG = """\
doctor [--json]   what gnnoffload finds on this machine, with the disk's bandwidth
demo [...]        train a mesh GNN with and without offload; demo --help
bench [OP] [...]  measure (source tree only); without OP: the list
"""


def main(argv=None):
    """Run one command.

    Args:
        argv: list of words; None: those of the process.

    Returns:
        The exit status: 0; 1 (doctor found a problem, the command failed); 2 (usage).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m gnnoffload",
        usage="python -m gnnoffload {doctor,demo,bench} ...",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    if not words:
        parser.print_help()
        return 0
    command = parser.parse_args(words[:1]).command
    return COMMANDS[command](words[1:])


def doctor(words):
    """Print the facts; 1 when tensors cannot spill or torch is not bound."""
    from gnnoffload._doctor import facts, render

    parser = argparse.ArgumentParser(prog="python -m gnnoffload doctor")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--spill-dir", help="measure this directory")
    parser.add_argument("--quick", action="store_true", help="do not measure the disk")
    options = parser.parse_args(words)
    found = facts(measure=not options.quick, spill_dir=options.spill_dir)
    print(json.dumps(found, indent=2) if options.json else render(found))
    return 1 if found["spill"]["problem"] or not found["torch"]["bound"] else 0


def demo(words):
    """Run the main job."""
    from gnnoffload.demo import main as run_demo

    return run_demo(words)


def bench(words):
    """Run benchmarks/bench_<OP>.py of the source tree."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    found = {path.stem[6:]: path for path in sorted(folder.glob("bench_*.py"))}
    if not found:
        print(f"bench: no benchmarks in {folder}; they come with the source tree")
        return 1
    if words and words[0] == "--share":
        words = ["share", *words[1:]]
    words = [words[0].replace("-", "_"), *words[1:]] if words else []
    if not words or words[0] not in found:
        print("usage: python -m gnnoffload bench OP [...]")
        for name, path in found.items():
            name = "--share" if name == "share" else name.replace("_", "-")
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            print(f"  {name:<12} {text.partition(chr(10))[0]}")
        return 0 if not words else 2
    path = found[words[0]]
    sys.argv = [str(path), *words[1:]]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(path), run_name="__main__")
    return 0


COMMANDS = {"doctor": doctor, "demo": demo, "bench": bench}
