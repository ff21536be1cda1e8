"""What a saved tensor costs: no hooks, Python hooks, ours skipped, ours moved.

One run, contenders interleaved round by round, gradients compared first. The work is a
chain of sines, each of which saves its input, a tensor of its own. Costs are host time
(CPU time of the thread that runs the step, so that other work on the machine does not
count) added per saved tensor, forward and backward together, over the same chain
without hooks: median over rounds of the difference within a round, and the best round.

Bars: a skipped tensor costs no more than the Python pair
`lambda t: (t.detach(), t._version)`; a moved one at most 15 microseconds over a
RAM-to-RAM link; outside the context nothing (less than the spread of the plain chain).
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

import gnnoffload as go

MOVED_BAR = 15e-6
SKIPPED_FLOATS, MOVED_FLOATS = 16, 1024


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
    """Seconds of forward and backward of one chain."""
    w.grad = None
    begin = time.thread_time()
    with context:
        h = chain(w, length)
        loss = h.sum()
        del h
    loss.backward()
    return time.thread_time() - begin


def compare(contenders, floats, length, rounds):
    """{name: [seconds of a step per round]}; the gradients must agree bit for bit."""
    w = torch.full((floats,), 1.0, requires_grad=True)
    step(w, length, contextlib.nullcontext())
    expected = w.grad.clone()
    for context in contenders.values():
        for _ in range(3):
            step(w, length, context)
        if not torch.equal(w.grad, expected):
            raise SystemExit("a contender changed the gradient")
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, context in contenders.items():
            times[name].append(step(w, length, context))
    return times


def added(times, name, saves):
    """(median, best) added seconds per saved tensor over the plain chain."""
    plain = times["no hooks"]
    each = [(t - p) / saves for t, p in zip(times[name], plain, strict=True)]
    return statistics.median(each), (min(times[name]) - min(plain)) / saves


def commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.check_output(
            command, text=True, cwd=Path(__file__).parent
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--length", type=int, default=512, help="operations in the chain"
    )
    parser.add_argument("--json", default="benchmarks/results/hooks.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    length, rounds = arguments.length, arguments.rounds
    saves = length

    skipping = go.offload("1GiB", store="ram", min_bytes="1MiB", host_limit="64MiB")
    small = {
        "no hooks": contextlib.nullcontext(),
        "Python hooks": python_hooks(),
        "ours, skipped": skipping,
        "outside": contextlib.nullcontext(),
    }
    window = 64 * 4 * MOVED_FLOATS
    moving = go.offload(
        0,
        store="ram",
        min_bytes=1,
        inflight=window,
        prefetch=window,
        host_limit="64MiB",
    )
    large = {
        "no hooks": contextlib.nullcontext(),
        "Python hooks": python_hooks(),
        "ours, moved": moving,
    }
    with_small = compare(small, SKIPPED_FLOATS, length, rounds)
    with_large = compare(large, MOVED_FLOATS, length, rounds)
    report = moving.report()

    rows = {}
    for name in ("Python hooks", "ours, skipped", "outside"):
        rows[name] = added(with_small, name, saves)
    rows["Python hooks (4 KiB)"] = added(with_large, "Python hooks", saves)
    rows["ours, moved"] = moved = added(with_large, "ours, moved", saves)

    print(
        f"host time added per saved tensor, {rounds} rounds of {saves} saves, 1 thread"
    )
    print(f"{'':32} {'median':>10} {'best':>10}")
    for name, (median, best) in rows.items():
        print(f"{name:32} {median * 1e6:7.2f} us {best * 1e6:7.2f} us")
    pairs = zip(with_small["ours, skipped"], with_small["Python hooks"], strict=True)
    ratio = statistics.median(ours / python for ours, python in pairs)
    spread = statistics.quantiles(
        [
            abs(a - b) / saves
            for a, b in zip(
                *(with_small[n] for n in ("no hooks", "outside")), strict=True
            )
        ],
        n=4,
    )[2]
    bars = {
        "skipped <= Python pair": rows["ours, skipped"][0] <= rows["Python hooks"][0],
        "moved <= 15 us": moved[0] <= MOVED_BAR,
        "outside within spread": abs(rows["outside"][0]) <= spread,
    }
    print(f"whole step, skipped over Python pair, median of ratios: {ratio:.3f}")
    print(
        f"moved, of {saves} saves: {report.copies_out} out, {report.copies_in} in again"
    )
    for name, held in bars.items():
        print(f"{'held ' if held else 'MISSED'} {name}")

    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "commit": commit(),
                "rounds": rounds,
                "saves_per_step": saves,
                "seconds_added_per_save": {
                    name: {"median": median, "best": best}
                    for name, (median, best) in rows.items()
                },
                "step_ratio_skipped_over_python": ratio,
                "bars": bars,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
