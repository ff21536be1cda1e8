"""Small schedules in every history: each question answered both ways, depth first.

GNN_TEST_FORKS (7): questions of a whole training step, 2^n histories; 9 at night.
"""

import os

import pytest
import torch
from forks import answer, following, histories
from link_driver import Link, Steps
from simulator import Machine
from torch import nn
from torch_device import Device, offload
from training_steps import BLOCK, WIDTH, assert_same, finish, gradients, inputs


def polls(questions, wrong=False):
    """A program that reads on the host what it has asked about, or waits."""

    def run(answers):
        m = Machine("lazy")
        answer(m, answers)
        side = m.stream("transfer")
        for i in range(questions):
            x, host, ready, left = m.alloc(4096), m.pinned(4096), m.event(), m.event()
            m.kernel("make", writes=[x])
            m.record(ready)
            m.after(side, ready)
            m.copy_out(host, x, side)
            m.record(left, side)
            asked = ready if wrong and i == questions - 1 else left
            if not m.call("event_done", 0, asked):
                m.wait_event(left)
            m.host_read(host)
        return m

    return run


def test_every_sequence_of_answers_comes_once():
    seen = [tuple(taken) for taken, m, whole in histories(polls(3)) if whole]
    assert seen == sorted(seen) and len(set(seen)) == 8 == len(seen)
    assert following([]) is None


def test_a_mistake_behind_one_answer_is_found():
    """The wrong event is asked about; only after "yes" does the host not wait."""
    raced = {}
    for taken, m, _ in histories(polls(2, wrong=True)):
        raced[tuple(taken)] = {v["kind"] for v in m.violations()}
    assert raced == {(0, 0): set(), (0, 1): {"race"}, (1, 0): set(), (1, 1): {"race"}}


FORKS = int(os.environ.get("GNN_TEST_FORKS", "7"))
AWAY = [("make", 0, 4), ("put", 0, 0)]
SCHEDULES = {  # of link_cuda's caller, and how many histories it has
    "one": ([*AWAY, ("get", 0, 0), ("use", 0, 0)], 5),
    "two": ([*AWAY * 2, ("get", 0, 0), ("get", 1, 1), *[("use", 0, 0)] * 2], 173),
    "polled": ([*AWAY * 2, ("poll", 0, 0), ("poll", 1, 0), ("get", 1, 0)], None),
    "three": ([*AWAY * 3, *[("get", 2, 0), ("get", 0, 1), ("use", 0, 0)] * 2], None),
    "slot again": (
        [*AWAY, ("get", 0, 0), ("forget", 0, 0), *AWAY, ("get", 0, 1), ("use", 0, 0)],
        None,
    ),
}


@pytest.mark.law(8)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_link_is_clean_whatever_it_is_told(name):
    steps, count = SCHEDULES[name]
    results, n = set(), 0

    def run(answers):
        m = Machine("lazy")
        answer(m, answers)
        link = Link(m, 1 << 22)
        program = Steps(m, link)
        results.add(program.play(steps))
        program.end()
        link.close()
        return m

    for _, m, whole in histories(run):
        m.check()
        assert m.leaks() == {}
        assert whole or count is None
        n += 1
    assert len(results) == 1 and n == (count or n) and n > 4


def two_layers():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


@pytest.mark.law(4, 8)
@pytest.mark.parametrize(
    "limit",
    [4, pytest.param(FORKS, marks=pytest.mark.slow)],
    ids=["few forks", "more forks"],
)
@pytest.mark.parametrize("budget, window", [(0, 0), (0, 1), (1, 1)])
def test_a_training_step_is_right_whatever_it_is_told(budget, window, limit):
    """The real hooks and engine; the first questions of the step are answered."""
    expected, n = gradients(two_layers(), inputs()), 0

    def run(answers):
        with Device("lazy") as d:
            sizes = budget * BLOCK, window * BLOCK, window * BLOCK
            engine = d.engine(*sizes, min_bytes=1024)
            answer(d.m, answers)
            net, x = two_layers(), inputs()
            assert_same([gradients(net, x, offload(engine))], [expected])
            del net, x
            finish(d, engine)
            d.m.check()
        return d.m

    for _ in histories(run, limit):
        n += 1
    assert n > limit
