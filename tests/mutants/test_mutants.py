"""The table of mutants is about the sources as they are, and the runner can tell a
killed mutant from a survivor."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from run_mutants import MACRO, Broken, commands, mutate, read_table  # noqa: E402

TABLE = read_table()
MUTANTS = TABLE["mutant"]
CLASSES = ("core", "cpu", "engine", "links", "hooks", "cuda")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["name"])
def test_the_site_is_there(mutant):
    text = (ROOT / mutant["file"]).read_text()
    assert mutate(text, mutant) != text
    assert mutant["kill"]
    for kill in mutant["kill"]:
        _, test = commands(kill)
        if kill.startswith("c "):
            source = ROOT / "tests" / "c" / f"{Path(test[0]).name}.c"
            assert source.exists()


def test_names_are_unique_and_each_class_has_four():
    assert max(Counter(mutant["name"] for mutant in MUTANTS).values()) == 1
    classes = Counter(mutant["class"] for mutant in MUTANTS)
    assert all(classes[name] >= 4 for name in CLASSES), classes


def test_each_macro_in_the_sources_is_in_the_table():
    listed = {mutant["name"]: mutant["file"] for mutant in MUTANTS}
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".c", ".h", ".cu", ".cuh") and path.name != "mutants.h":
            for name in MACRO.findall(path.read_text()):
                assert listed.get(name) == str(path.relative_to(ROOT)), name


def test_an_equivalent_one_has_a_proof():
    for equal in TABLE.get("equivalent", ()):
        assert len(equal["proof"]) > 20, equal["name"]


def test_a_mutant_without_its_site_is_an_error():
    missing = {"name": "gone", "file": "x.c", "kill": ["c test_status"]}
    with pytest.raises(Broken):
        mutate("int x;", missing)
    with pytest.raises(Broken):
        mutate("int x, x2;", {**missing, "old": "int y", "new": "int z"})
    with pytest.raises(Broken):
        mutate("x x", {**missing, "old": "x", "new": "y"})


PROGRAM = """#include "mutants.h"
int main(void) {
    int sum = 0;
    for (int i = 0; i GNN_MUTANT(limit, <, <=) 3; i++) {
        sum += GNN_MUTANT(call, (sum, i), 1);
    }
    GNN_MUTANT(gone, sum++, );
    return sum;
}
"""


@pytest.mark.parametrize(
    "name, value", [("", 4), ("limit", 7), ("call", 4), ("gone", 3)]
)
@pytest.mark.parametrize("compiler", [["cc", "-std=c11"], ["c++", "-x", "c++"]])
def test_the_macro_picks_one_side(tmp_path, compiler, name, value):
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    define = [f"-DGNN_MUTANT_{name}"] if name else []
    subprocess.run(
        [*compiler, "-Wno-all", "-I", ROOT / "csrc", *define, source, "-o", program],
        check=True,
    )
    assert subprocess.run([program]).returncode == value


FOUR = """
[[mutant]]
name = "{0}_seen"
class = "links"
file = "csrc/offload/slots.c"
old = "if (size >= wanted &&"
new = "if (size > wanted &&"
kill = ["c test_link_slots"]

[[mutant]]
name = "{0}_not_seen"
class = "links"
file = "csrc/offload/slots.c"
old = "if (size >= wanted &&"
new = "if (size > wanted &&"
kill = ["c test_status"]

[[mutant]]
name = "{0}_gone"
class = "links"
file = "csrc/offload/slots.c"
old = "this line is not there"
new = ""
kill = ["c test_status"]

[[mutant]]
name = "{0}_fails_anyway"
class = "links"
file = "csrc/offload/slots.c"
old = "if (size >= wanted &&"
new = "if (size > wanted &&"
kill = ["run exit 1"]
"""


@pytest.mark.slow
def test_the_runner_tells_killed_from_survived_and_broken(tmp_path):
    table = tmp_path / "four.toml"
    table.write_text(FOUR.format("self_test"))
    done = subprocess.run(
        [sys.executable, ROOT / "tests/mutants/run_mutants.py", "--table", table],
        capture_output=True,
        text=True,
    )
    last = done.stdout.splitlines()[-1]
    assert last == "1 killed, 1 survived, 2 broken", done.stderr
    assert re.search(r"SURVIVED +links +self_test_not_seen", done.stdout)
    assert re.search(
        r"BROKEN +links +self_test_gone +csrc/off.* must hold", done.stdout
    )
    fails = r"BROKEN +links +self_test_fails_anyway +run exit 1 fails without a mutant"
    assert re.search(fails, done.stdout)
    assert done.returncode == 1
