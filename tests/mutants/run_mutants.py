"""Test the tests: build each known mistake of mutants.toml and run what must notice it.

A mutant is killed when its test fails, or takes far longer than without it; it survives
when the test passes; it is broken when its site is gone or its test fails without it.
Ends with `N killed, M survived`, and `, K broken` where K is not 0; exit status 1
unless all are killed.
Each mutant is made in a copy of the tree (build/mutants/<name>) that starts with the
objects of the whole one, so only what the mistake touches is compiled again.

    python tests/mutants/run_mutants.py [--class links] [--quick] [--jobs 2] [name ...]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WHOLE = ROOT / "build" / "mutants" / "whole"  # the copy without a mistake
COPIED = ("csrc", "tests", "gnnoffload", "setup.py", "pyproject.toml", "Makefile")
SECONDS = 600  # of one test without a mistake
MACRO = re.compile(r"\bGNN_MUTANT\(\s*(\w+)")


class Broken(Exception):
    """The table or the tree is at fault, not the tests."""


def read_table(path=HERE / "mutants.toml"):
    """The mutants, each a dict: name, class, file, kill, and old and new or neither."""
    return tomllib.loads(path.read_text())


def mutate(text, mutant):
    """The text of the mutant's file with its mistake in it."""
    if "old" not in mutant:
        if mutant["name"] not in MACRO.findall(text):
            raise Broken(f"{mutant['file']} has no GNN_MUTANT({mutant['name']}, ...)")
        return f"#define GNN_MUTANT_{mutant['name']} 1\n{text}"
    if text.count(mutant["old"]) != 1:
        raise Broken(f"{mutant['file']} must hold once: {mutant['old']!r}")
    return text.replace(mutant["old"], mutant["new"])


def commands(kill):
    """(build, test) commands of one entry of `kill`, run in a copy of the tree.

    "c test_x"           a C test under AddressSanitizer and UndefinedBehaviorSanitizer
    "py tests/x.py ..."  pytest with the extension built from the copy
    "cuda tests/x.py .." pytest that needs no extension: kernels on the CPU
    "run command ..."    anything else that fails when the mistake is there
    """
    kind, _, rest = kill.partition(" ")
    if kind == "c":
        make = ["make", "-s", "-f", "tests/c/ctest.mk", f"build/ctest/{rest}"]
        return make, [f"build/ctest/{rest}"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    if kind == "py":
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        return build, [*pytest, *rest.split()]
    if kind == "cuda":
        return ["true"], [*pytest, *rest.split()]
    if kind == "run":
        return ["true"], ["sh", "-c", rest]
    raise Broken(f"kill must begin with c, py, cuda or run, got {kill!r}")


def run(command, tree, seconds):
    """(status, seconds taken, output); status None when the limit was reached."""
    begin = time.monotonic()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # for `run`
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GNNOFFLOAD_WERROR": "0",  # a mistake may leave a variable unused
    }
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=seconds)[0].decode(errors="replace")
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the test and what it started
        output, status = process.communicate()[0].decode(errors="replace"), None
    return status, time.monotonic() - begin, output


def copy_tree(source, target):
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in COPIED:
        command = ["cp", "-a", "--reflink=auto", str(source / name), str(target)]
        subprocess.run(command, check=True)
    for name in ("objects", "ctest", "cuda_on_cpu"):
        if (source / "build" / name).exists():
            place = target / "build"
            place.mkdir(exist_ok=True)
            command = ["cp", "-a", "--reflink=auto", source / "build" / name, place]
            subprocess.run(command, check=True)
    # No test program but the one that is built again
    for program in (target / "build" / "ctest").glob("test_*"):
        if program.suffix == "":
            program.unlink()


def build(command, tree, what):
    status, _, output = run(command, tree, 900)
    if status != 0:
        raise Broken(f"{what} does not build:\n{output[-3000:]}")


def prepare(mutants):
    """Builds the tree without mistakes, where every test of the table must pass.

    Returns the time limit of each test, since a mutant may hang; for one that fails,
    the Broken that says so.
    """
    limits = {}
    saved = WHOLE.with_name("saved")
    shutil.rmtree(saved, ignore_errors=True)
    if (WHOLE / "build").exists():
        (WHOLE / "build").rename(saved)
    copy_tree(ROOT, WHOLE)
    if saved.exists():  # objects of the last run: make and setup.py know which are old
        shutil.rmtree(WHOLE / "build", ignore_errors=True)
        saved.rename(WHOLE / "build")
    for kill in sorted({kill for mutant in mutants for kill in mutant["kill"]}):
        try:
            seconds = time_whole(kill)
            limits[kill] = 15 + 5 * seconds
            print(f"  whole     {kill}  {seconds:.1f} s", flush=True)
        except Broken as broken:
            limits[kill] = broken
    return limits


def time_whole(kill):
    """Seconds of one test without a mistake."""
    make, test = commands(kill)
    build(make, WHOLE, kill)
    status, seconds, output = run(test, WHOLE, SECONDS)
    if status != 0:
        how = f"takes over {SECONDS} s" if status is None else "fails"
        raise Broken(f"{kill} {how} without a mutant:\n{output[-3000:]}")
    return seconds


def try_mutant(mutant, limits, keep=False):
    """("killed", "SURVIVED" or "BROKEN", what happened)"""
    try:
        return how_it_ends(mutant, limits, keep)
    except Broken as broken:
        return "BROKEN", str(broken)


def how_it_ends(mutant, limits, keep):
    for kill in mutant["kill"]:
        if isinstance(limits[kill], Broken):
            raise limits[kill]
    tree = WHOLE.with_name(mutant["name"])
    copy_tree(WHOLE, tree)
    try:
        path = tree / mutant["file"]
        path.write_text(mutate(path.read_text(), mutant))
        for kill in mutant["kill"]:
            make, test = commands(kill)
            build(make, tree, mutant["name"])
            status, seconds, output = run(test, tree, limits[kill])
            if "pytest" in test and status in (2, 3, 4, 5):
                raise Broken(f"{mutant['name']}: pytest could not run:\n{output}")
            if status != 0:
                end = "time limit" if status is None else f"{seconds:.1f} s"
                return "killed", f"{kill} ({end})"
        return "SURVIVED", ", ".join(mutant["kill"])
    finally:
        if not keep:
            shutil.rmtree(tree, ignore_errors=True)


def is_quick(mutant):
    return mutant["file"].startswith(("csrc/core/", "csrc/offload/")) and all(
        kill.startswith("c ") for kill in mutant["kill"]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--class", dest="kind", help="only mutants of this class")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only mutants outside the kernels that C tests kill",
    )
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count(), 8))
    parser.add_argument("--table", type=Path, default=HERE / "mutants.toml")
    parser.add_argument("--keep", action="store_true", help="keep the copies")
    options = parser.parse_args()

    table = read_table(options.table)
    mutants = [
        mutant
        for mutant in table["mutant"]
        if (not options.names or mutant["name"] in options.names)
        and (not options.kind or mutant["class"] == options.kind)
        and (not options.quick or is_quick(mutant))
    ]
    unknown = set(options.names) - {mutant["name"] for mutant in mutants}
    if unknown:
        parser.error(f"no such mutant: {' '.join(sorted(unknown))}")
    limits = prepare(mutants)
    count = Counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        ends = pool.map(lambda m: try_mutant(m, limits, options.keep), mutants)
        for mutant, (word, how) in zip(mutants, ends, strict=True):
            count[word] += 1
            line = f"  {word:9} {mutant['class']:9} {mutant['name']}  {how}"
            print(line, flush=True)
    for equal in table.get("equivalent", ()):
        print(f"  not built {equal['name']}: {equal['proof']}")
    broken = f", {count['BROKEN']} broken" if count["BROKEN"] else ""
    print(f"{count['killed']} killed, {count['SURVIVED']} survived{broken}")
    sys.exit(count["killed"] < len(mutants))


if __name__ == "__main__":
    main()
