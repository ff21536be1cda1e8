"""Sparse-dense product, forward and backward, against every other way to do it.

    make bench OP=spmm                          the whole matrix
    make bench OP=spmm ARGS="--quick"           three small cases
    make bench OP=spmm ARGS="--graphs mesh6 --features 64 128"
    make bench OP=spmm ARGS="--device cuda"     the peers are then cuSPARSE, ...

Contenders run interleaved in rotating order in one process, on one thread, timed by
process CPU time; outputs and gradients are checked against float64 first. The last
lines say which bars hold.
"""

import argparse
import math
import statistics
import time

import torch

import gnnoffload as go
from benchmarks import measure
from benchmarks.graphs import GRAPHS
from benchmarks.spmm_peers import peers
from gnnoffload._cuda_lane import device_named

WIDTHS = (1, 7, 64, 128, 257)
MATRIX = [
    *[("mesh6", f, "float32") for f in WIDTHS],
    ("mesh6", 128, "bfloat16"),
    *[("mesh5", f, "float32") for f in (64, 128)],
    *[("arxiv-like", f, "float32") for f in WIDTHS],
    ("arxiv-like", 128, "bfloat16"),
    *[("uniform", f, "float32") for f in (64, 128)],
    *[("kron18", f, "float32") for f in (7, 64)],
    *[("small", f, "float32") for f in (7, 64, 257)],
    *[("hub", f, "float32") for f in WIDTHS],
]
QUICK = [("mesh5", 64, "float32"), ("small", 7, "float32"), ("hub", 64, "float32")]


def forward_backward(product, x, grad_y):
    """The whole step as one function, and its result (y, grad_x)."""

    def step():
        x.grad = None
        y = product(x)
        y.backward(grad_y)
        return y

    return step


def verify(name, step, x, edge_index, tolerance):
    """L2-relative error of output and gradient against float64 sums."""
    y = step()
    source, destination = edge_index
    for got, start, from_, to in (
        (y, x, source, destination),
        (x.grad, step.grad_y, destination, source),
    ):
        want = torch.zeros(got.shape, dtype=torch.float64, device=got.device)
        wide = start.detach().double()
        for part in torch.arange(from_.numel()).split(2**18):
            want.index_add_(0, to[part], wide[from_[part]])
        error = ((got.detach().double() - want).norm() / want.norm()).item()
        if not error <= tolerance:
            raise SystemExit(f"{name}: relative error {error:.1e}, not timed")


def no_reuse_bytes(n_nodes, n_edges, width, size):
    """One product: each entry reads its row of x, each row of y is written once."""
    return n_edges * (width * size + 4) + n_nodes * width * size + 8 * (n_nodes + 1)


def run_case(name, edge_index, n, width, dtype, args, threads=1):
    """Times one case; a dict for the JSON file."""
    torch.manual_seed(0)
    n_edges, edge_index = edge_index.shape[1], edge_index.to(args.device)
    x = torch.randn(n, width).to(args.device, dtype).requires_grad_()
    grad_y = torch.randn(n, width).to(args.device, dtype)
    graph = go.Graph(edge_index, size=(n, n))
    message_bytes = n_edges * width * x.element_size()
    messages = message_bytes <= args.message_limit
    found = {"ours": lambda x: go.spmm(graph, x)}
    found |= peers(edge_index, n, dtype, messages)

    steps, forwards = {}, {}
    for key, product in found.items():
        step = forward_backward(product, x, grad_y)
        step.grad_y = grad_y
        try:
            step()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            print(f"  {key} left out: {str(error).splitlines()[0][:70]}")
            continue
        verify(key, step, x, edge_index, 1e-4 if dtype == torch.float32 else 2e-2)
        steps[key] = step
        forwards[key] = lambda product=product: product(x)

    clock = measure.clock_of(args.device) if threads == 1 else time.perf_counter
    slow = {key: 3 for key in ("pyg", "pyg_sorted", "sparse.mm", "scipy")}
    seconds = measure.interleave(steps, args.rounds, clock, every=slow)
    forward = measure.interleave(forwards, args.rounds, clock, every=slow)
    return {
        "graph": name,
        "nodes": n,
        "edges": n_edges,
        "features": width,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "no_reuse_bytes": 2 * no_reuse_bytes(n, n_edges, width, x.element_size()),
        "left_out": {} if messages else {"pyg": f"messages of {message_bytes} bytes"},
        "forward_backward_seconds": seconds,
        "forward_seconds": forward,
    }


def judge(case, triad):
    """Adds to a case what the table shows."""
    seconds = case["forward_backward_seconds"]
    ours = seconds["ours"]
    best = min(
        (k for k in seconds if k not in ("ours", "pyg", "pyg_sorted")),
        key=lambda k: measure.median(seconds[k]),
    )
    case["best_peer"] = best
    case["best_ratio"] = measure.quartiles(measure.ratios(seconds[best], ours))
    if "pyg_sorted" in seconds:
        case["pyg_sorted_ratio"] = measure.quartiles(
            measure.ratios(seconds["pyg_sorted"], ours)
        )
    case["triad_share"] = case["no_reuse_bytes"] / measure.median(ours) / triad
    return case


def table_line(case):
    seconds = case["forward_backward_seconds"]
    low, middle, high = case["best_ratio"]
    sorted_ratio = case.get("pyg_sorted_ratio")
    pyg = f"{sorted_ratio[1]:6.1f}x" if sorted_ratio else "      -"
    return (
        f"{case['graph']:<11}{case['features']:>4} {case['dtype']:<9}"
        f"{1e3 * measure.median(case['forward_seconds']['ours']):>9.3f}"
        f"{1e3 * measure.median(seconds['ours']):>9.3f} "
        f"{pyg}  {case['best_peer']:<13} {middle:5.2f} [{low:.2f}-{high:.2f}]"
        f"{case['triad_share']:>8.2f}"
    )


HEADER = (
    f"{'graph':<11}{'F':>4} {'dtype':<9}{'fwd ms':>9}{'f+b ms':>9} "
    f"{'sorted':>7}  {'best peer':<13} {'ratio [quartiles]':<17}{'triad':>7}"
)


def summary(cases, triad):
    """One line per bar."""
    single = [c for c in cases if c["threads"] == 1]
    pyg = [c for c in single if "pyg_sorted_ratio" in c]
    lines = []
    if pyg:
        worst = min(pyg, key=lambda c: c["pyg_sorted_ratio"][1])
        ratio = worst["pyg_sorted_ratio"][1]
        lines.append(
            f"sorted PyG, fwd+bwd: at least {ratio:.1f}x "
            f"({worst['graph']} F={worst['features']}); bar 5x: {_verdict(ratio >= 5)}"
        )
    worst = min(single, key=lambda c: c["best_ratio"][0])
    low = worst["best_ratio"][0]
    lines.append(
        f"best peer, lower quartile: at least {low:.2f} ({worst['graph']} "
        f"F={worst['features']} {worst['dtype']}); bar 0.9: {_verdict(low >= 0.9)}"
    )
    mean = statistics.geometric_mean(c["best_ratio"][1] for c in single)
    lines.append(
        f"best peer, geometric mean: {mean:.2f}x over {len(single)} cases; bar 1.3x: "
        f"{_verdict(mean >= 1.3)}"
    )
    large = [c for c in single if c["graph"] == "uniform4x"]
    for case in large:
        share = case["triad_share"]
        lines.append(
            f"x four times the cache: {share:.2f} of the no-reuse roofline at "
            f"{triad / 1e9:.1f} GB/s triad; bar 0.65: {_verdict(share >= 0.65)}"
        )
    return lines


def _verdict(holds):
    return "holds" if holds else "MISSED"


def large_graph():
    """uniform graph, degree 16, whose float32 x [N, 128] is four caches large."""
    from benchmarks.graphs import uniform

    n = math.ceil(4 * measure.last_level_cache() / 512)
    return uniform(n, 16)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three small cases")
    parser.add_argument("--graphs", nargs="+", help="only these graphs")
    parser.add_argument("--features", nargs="+", type=int, help="only these widths")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--message-limit",
        type=float,
        default=2**30,
        help="largest E x F tensor, in bytes, that a peer may make",
    )
    parser.add_argument("--two-threads", action="store_true", help="also, wall time")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    try:
        args.device = device_named(args.device)
    except go.DeviceError as error:
        parser.error(str(error))

    cases = QUICK if args.quick else [*MATRIX, ("uniform4x", 128, "float32")]
    if args.graphs:
        cases = [c for c in cases if c[0] in args.graphs]
    if args.features:
        cases = [c for c in cases if c[1] in args.features]

    measure.recycle_memory()
    torch.set_num_threads(1)
    on_cuda = args.device.type == "cuda"
    args.two_threads = args.two_threads and not on_cuda
    triads = [measure.triad_bandwidth(device=args.device)]
    where = measure.gpu_name(args.device) if on_cuda else "1 thread"
    print(f"STREAM triad, {where}: {triads[0] / 1e9:.1f} GB/s\n{HEADER}")
    done, graphs = [], {**GRAPHS, "uniform4x": large_graph}
    last_name, edge_index, n = None, None, None
    for name, width, dtype in cases:
        if name != last_name:
            edge_index, n = graphs[name]()
            last_name = name
        for threads in (1, 2) if args.two_threads else (1,):
            torch.set_num_threads(threads)
            case = run_case(
                name, edge_index, n, width, getattr(torch, dtype), args, threads
            )
            torch.set_num_threads(1)
            triads.append(measure.triad_bandwidth(rounds=2, device=args.device))
            done.append(judge(case, max(triads)))
            mark = "" if threads == 1 else "  (2 threads, wall: reported only)"
            print(table_line(done[-1]) + mark, flush=True)

    triad = max(triads)
    for case in done:
        judge(case, triad)
    print()
    lines = summary(done, triad)
    print("\n".join(lines))
    if not args.no_save and not (args.quick or args.graphs or args.features):
        packages = ["torch", "torch_geometric", "scipy", "numpy"]
        result = measure.facts(packages, args.device)
        result |= {"triad_bytes_per_second": triads, "summary": lines, "cases": done}
        measure.save("spmm", result)


if __name__ == "__main__":
    main()
