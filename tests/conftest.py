"""The marker `law` and the closing table: each law of docs/design.md and its proof.

A test names the laws it proves: `@pytest.mark.law(4)`, `@pytest.mark.law(4, 6)`. A C
test names them in a comment, `law: 8`, and counts when `make ctest` has passed it in
this run (GNNOFFLOAD_CTEST_RESULTS, set by `make test`).

With GNNOFFLOAD_STRICT_SKIPS=1, as in CI, a skipped test fails the run unless its reason
is in ALLOWED_SKIPS: what was meant to be proved and was not must be known.
"""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

LAWS = {
    1: "forward and backward agree with the reference",
    2: "deterministic: threads, schedule and offload change nothing",
    3: "no tensor of size edges x features is allocated or saved needlessly",
    4: "offload changes no gradient bit and holds its budget",
    5: "steady state: no synchronisation, no allocation",
    6: "unpack is repeatable until the graph dies",
    7: "an in-place change of a saved tensor raises, as in eager mode",
    8: "every schedule is race-free",
    9: "a full tier keeps training going; a failed read raises",
    10: "malformed input gets a named exception before any kernel",
    11: "a fallback is never silent",
}
ALLOWED_SKIPS = (  # beginnings of reasons
    "no nvcc on PATH",  # the kernels still run, in tests/cuda_on_cpu
    "built with CUDA",  # the other half of a pair of tests
    "there is a CUDA device",
    "this machine has a driver",
    "this file system has no direct I/O",
    "this processor has no fused multiply-add",
    "not a git checkout",
    "anemoi-models is not installed",  # a stand-in of its blocks is tested
)
skipped = []  # (place, reason) of skips that are not allowed
outcomes = defaultdict(Counter)  # law -> {(file, "passed" | "failed"): tests}


def make_each_fusing_layer_of_pyg():
    """PyG compiles `propagate` once for a class, as the first instance needs it: after
    a first SAGEConv(aggr="mul") no SAGEConv takes a sparse matrix. So the first one is
    plain, whichever tests run."""
    try:
        import torch_geometric.nn as pyg
    except ImportError:
        return
    pyg.SAGEConv(1, 1), pyg.SimpleConv(), pyg.GraphConv(1, 1)
    pyg.GINConv(pyg.Linear(1, 1))


def pytest_sessionstart():
    make_each_fusing_layer_of_pyg()


def pytest_configure(config):
    config.addinivalue_line("markers", "law(n, ...): proves laws of docs/design.md")
    config.addinivalue_line(
        "markers", "slow: left out of `make check` (over 5 seconds)"
    )


def laws_of(item):
    return {law for mark in item.iter_markers("law") for law in mark.args}


def pytest_collection_modifyitems(items):
    for item in items:
        unknown = laws_of(item) - set(LAWS)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no such law: {sorted(unknown)}")
        item.user_properties.append(("laws", sorted(laws_of(item))))


def note_skip(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            skipped.append((report.nodeid, reason))


def pytest_collectreport(report):
    note_skip(report)


def pytest_sessionfinish(session):
    if skipped and os.environ.get("GNNOFFLOAD_STRICT_SKIPS") == "1":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_runtest_logreport(report):
    note_skip(report)
    if report.when == "call" or report.failed:
        path = report.location[0]
        for law in dict(report.user_properties).get("laws", ()):
            outcomes[law][path, report.outcome] += 1


def count_c_tests(results):
    """C tests that passed in this run count once for each law their source names."""
    for source in sorted(Path(__file__).parent.glob("c/test_*.c")):
        named = re.search(r"\blaw: *([\d ,]+)", source.read_text())
        if named:
            passed = Path(results, source.stem + ".ok").exists()
            for law in map(int, re.findall(r"\d+", named[1])):
                outcomes[law][
                    f"tests/c/{source.name}", "passed" if passed else "failed"
                ] += 1


def pytest_terminal_summary(terminalreporter, config):
    if skipped and os.environ.get("GNNOFFLOAD_STRICT_SKIPS") == "1":
        terminalreporter.section("skips that are not allowed")
        for place, reason in skipped:
            terminalreporter.write_line(f"{place}: {reason}", red=True)
    results = os.environ.get("GNNOFFLOAD_CTEST_RESULTS")
    if not results:
        return
    count_c_tests(results)
    terminalreporter.section("laws")
    for law, text in LAWS.items():
        counts = outcomes[law]
        proofs = [
            f"{path} ({n})" for (path, what), n in counts.items() if what == "passed"
        ]
        broken = sum(n for (_, what), n in counts.items() if what == "failed")
        verdict = f"BROKEN in {broken}" if broken else "" if proofs else "no test yet"
        colour = {"red": bool(broken), "yellow": not proofs, "green": bool(proofs)}
        terminalreporter.write_line(f"{law:3} {text}  {verdict}".rstrip(), **colour)
        for proof in sorted(proofs):
            terminalreporter.write_line(f"    {proof}")
