"""The checker finds every public bug, names the right pair, and passes every repair."""

import pytest
from corpus import PATTERNS
from simulator import MODES, Machine, explain

RACES = [p for p in PATTERNS if p.pair]
SEEDS = 20


def names(pattern):
    return pattern.name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", RACES, ids=names)
def test_the_bug_is_found_whatever_the_timing(pattern, mode):
    m = Machine(mode, seed=1)
    pattern.play(m, fixed=False)
    races = [v for v in m.violations() if v["kind"] == "race"]
    pairs = {(v["first"]["site"]["what"], v["second"]["site"]["what"]) for v in races}
    assert pairs == {pattern.pair}, [explain(v) for v in races]
    assert all(0 < v["hi"] - v["lo"] <= 1 << 16 for v in races)


@pytest.mark.law(8)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", RACES, ids=names)
def test_the_repair_is_clean_and_its_bytes_do_not_depend_on_timing(pattern, mode):
    m = Machine("timed", machine="pcie5")
    expected = pattern.play(m, fixed=True)
    for seed in range(SEEDS if mode == "random" else 1):
        m = Machine(mode, seed)
        assert pattern.play(m, fixed=True) == expected
        m.check()


@pytest.mark.parametrize("pattern", RACES, ids=names)
def test_some_timing_shows_wrong_bytes(pattern):
    """The bugs are real: of the simulated schedules at least one computes nonsense."""
    expected = pattern.play(Machine("timed"), fixed=True)
    schedules = [("lazy", 0), ("eager", 0), *(("random", seed) for seed in range(200))]
    assert any(
        pattern.play(Machine(mode, seed), fixed=False) != expected
        for mode, seed in schedules
    )


def test_the_leak_is_found():
    (pattern,) = (p for p in PATTERNS if not p.pair)
    m = Machine()
    pattern.play(m, fixed=False)
    assert m.leaks() == {"pinned": 1, "events": 1}
    m = Machine()
    pattern.play(m, fixed=True)
    assert m.leaks() == {}
    m.check()


def test_every_public_report_has_its_pattern():
    assert len(PATTERNS) == 12
    assert len({p.report for p in PATTERNS}) == 12
