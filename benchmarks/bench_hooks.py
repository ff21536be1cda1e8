"""What a saved tensor costs: no hooks, Python hooks, ours skipped, ours moved.

One run, contenders interleaved round by round, gradients compared first. The work is a
chain of sines, each of which saves its input, a tensor of its own. A cost is the time
added per saved tensor, forward and backward together, over the same chain without hooks
in the same round: the median over rounds, with its quartiles. "Host" is the CPU time of
the thread that runs the step (what the copy workers do beside it does not count),
"wall" the time that passed, which other work on the machine lengthens.

Bars, on host time: a skipped tensor costs no more than the Python pair
`lambda t: (t.detach(), t._version)`; a moved one of 4 KiB at most 15 microseconds over
a RAM-to-RAM link; outside the context nothing (less than the plain chain's own spread
between quartiles). A moved tensor of 1 MiB, which a worker copies, is shown beside.
"""

import argparse
import contextlib
import os
import time

import measure
import torch

import gnnoffload as go

MOVED_BAR = 15  # microseconds
PLAIN, PYTHON, SKIPPED, MOVED = "no hooks", "Python hooks", "ours, skipped", "moved"
OUTSIDE = "outside"
CLOCKS = {"host": time.thread_time, "wall": time.perf_counter}


def python_hooks():
    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.detach(), t._version), lambda pair: pair[0]
    )


def chain(w, length):
    """`length` operations, each of which saves one tensor that is no leaf."""
    h = w * 1.0
    for _ in range(length):
        h = h.sin()
    return h


def step(w, length, context):
    """{clock: seconds} of forward and backward of one chain."""
    w.grad = None
    begin = {name: clock() for name, clock in CLOCKS.items()}
    with context:
        h = chain(w, length)
        loss = h.sum()
        del h
    loss.backward()
    return {name: clock() - begin[name] for name, clock in CLOCKS.items()}


def compare(contenders, floats, length, rounds):
    """{clock: {name: [added seconds per saved tensor, by round]}}, of the plain chain
    its whole time. The gradients must agree bit for bit."""
    w = torch.full((floats,), 1.0, requires_grad=True)
    step(w, length, contextlib.nullcontext())
    expected = w.grad.clone()
    for context in contenders.values():
        for _ in range(3):
            step(w, length, context)
        if not torch.equal(w.grad, expected):
            raise SystemExit("a contender changed the gradient")
    steps = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for k in range(len(names)):
            name = names[(k + turn) % len(names)]
            steps[name].append(step(w, length, contenders[name]))
    return {clock: _added(steps, clock, length) for clock in CLOCKS}


def _added(steps, clock, saves):
    seconds = {n: [s[clock] / saves for s in each] for n, each in steps.items()}
    plain = seconds[PLAIN]
    return {
        name: [t - p for t, p in zip(each, plain, strict=True)]
        if name != PLAIN
        else each
        for name, each in seconds.items()
    }


def compare_skipped(length, rounds):
    """Tensors of 64 bytes, below min_bytes."""
    contenders = {
        PLAIN: contextlib.nullcontext(),
        PYTHON: python_hooks(),
        SKIPPED: go.offload("1GiB", store="ram", min_bytes="1MiB", host_limit="64MiB"),
        OUTSIDE: contextlib.nullcontext(),
    }
    return compare(contenders, 16, length, rounds)


def compare_moved(size, length, rounds):
    """Tensors of `size` bytes, all moved; also how many copies a step made."""
    moving = go.offload(
        0,
        store="ram",
        min_bytes=1,
        inflight=64 * size,
        prefetch=64 * size,
        host_limit=2 * length * size,
    )
    contenders = {PLAIN: contextlib.nullcontext(), MOVED: moving}
    times = compare(contenders, size // 4, length, rounds)
    report = moving.report()
    return times, {"saves": length, "out": report.copies_out, "in": report.copies_in}


def judge(small, moved):
    """{bar: held}, on host time."""
    low, _, high = measure.quartiles(small["host"][PLAIN])
    medians = {name: measure.median(t) for name, t in small["host"].items()}
    return {
        "skipped <= Python pair": medians[SKIPPED] <= medians[PYTHON],
        f"moved, 4 KiB <= {MOVED_BAR} us": measure.median(moved["host"][MOVED])
        <= MOVED_BAR * 1e-6,
        "outside within spread": abs(medians[OUTSIDE]) <= high - low,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--length", type=int, default=512, help="saves in a step")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measure.recycle_memory()
    load = os.getloadavg()[0]

    small = compare_skipped(options.length, options.rounds)
    moved, copies = compare_moved(4 << 10, options.length, options.rounds)
    # A step of 1 MiB tensors takes longer: fewer of them, fewer rounds.
    length, rounds = max(1, options.length // 8), max(1, options.rounds // 5)
    moved_large, copies_large = compare_moved(1 << 20, length, rounds)

    rows = {name: (small, name) for name in (PYTHON, SKIPPED, OUTSIDE)}
    rows |= {"ours, moved, 4 KiB": (moved, MOVED)}
    rows |= {"ours, moved, 1 MiB": (moved_large, MOVED)}
    added = {
        row: {clock: measure.quartiles(times[clock][name]) for clock in CLOCKS}
        for row, (times, name) in rows.items()
    }
    bars = judge(small, moved)

    print(f"microseconds added per saved tensor, {options.rounds} rounds, 1 thread")
    print(f"{'':20} {'host: lower, median, upper':>27} {'wall':>23}")
    for row, clocks in added.items():
        numbers = " ".join(f"{t * 1e6:8.2f}" for c in CLOCKS for t in clocks[c])
        print(f"{row:20} {numbers}")
    for name, of in (("4 KiB", copies), ("1 MiB", copies_large)):
        print(f"{name}, of {of['saves']} saves: {of['out']} out, {of['in']} in again")
    for name, held in bars.items():
        print(f"{'held  ' if held else 'MISSED'} {name}")
    if not options.no_save:
        result = {
            "facts": measure.facts(["torch"]),
            "load": load,
            "rounds": options.rounds,
            "seconds_added_per_save": added,
            "copies": {"4 KiB": copies, "1 MiB": copies_large},
            "bars": bars,
        }
        measure.save("hooks", result)


if __name__ == "__main__":
    main()
