"""The rig of `bench attention` and `bench aggregate`: whole layers, forward and
backward, ours beside PyG's and DGL's operators, in time and in memory.

A case is a layer on a graph. All contenders carry the same parameters; their outputs
and gradients (of x and of every parameter) are checked against PyG's layer in float64
first. Then memory: the peak of resident bytes over what was there before, one step
each, with freed blocks going back to the kernel at once. Then time: interleaved in
rotating order in one process, on one thread, by process CPU time, each sample behind an
untimed call of its own, as in a training loop; with the allocator as a process finds
it, where a large temporary pays for its pages each time it is made (`--recycle` frees
everyone of that).
"""

import argparse
import copy
import ctypes
import gc
import statistics
from pathlib import Path

import torch

import gnnoffload as go
from benchmarks import layer_peers, measure
from benchmarks.graphs import GRAPHS
from gnnoffload import _fallback
from gnnoffload._cuda_lane import device_named

EDGE_DIM = 8
CPU = torch.device("cpu")


class Layer:
    """A layer of the table.

    make: function of (namespace with PyG's layer classes, F, H) giving the layer.
    bar: what sorted PyG's step must take at least, in ours.
    edge_dim: edge features that it is called with, or 0.
    tolerance: of the relative error in float32.
    """

    def __init__(self, make, *, bar=5.0, edge_dim=0, dgl_bar=None, tolerance=1e-4):
        self.make, self.bar, self.edge_dim = make, bar, edge_dim
        self.dgl_bar, self.tolerance = dgl_bar, tolerance


def sorted_by_destination(edge_index, *rest):
    """The edges in the order (destination, source), and rows of `rest` with them."""
    source, destination = edge_index
    order = (destination * (int(edge_index.max()) + 1) + source).argsort()
    return edge_index[:, order].contiguous(), *(
        None if r is None else r[order].contiguous() for r in rest
    )


def call(conv, x, edge_index, edge_attr):
    if edge_attr is None:
        return conv(x, edge_index)
    return conv(x, edge_index, edge_attr)


def step_of(forward, x, parameters, grad):
    """A training step as one function; its result is (y, gradients...)."""

    def step():
        y = forward(x)
        return y, *torch.autograd.grad(y, (x, *parameters), grad)

    return step


def contenders(layer, edge_index, n, features, heads, dtype, dgl, fresh):
    """({name: step}, the exact results), on the device of edge_index. `fresh`: every
    call gets its edges as a new tensor, as a mini-batch does, so that nothing about
    them is cached."""
    import torch_geometric.nn as pyg

    torch.manual_seed(0)
    stock = layer.make(pyg, features, heads)
    ours = layer.make(go.nn, features, heads)
    ours.load_state_dict(stock.state_dict())
    device = edge_index.device
    ours, stock = ours.to(device), stock.to(device)
    x = torch.randn(n, features, device=device)
    edge_attr = torch.randn(edge_index.shape[1], layer.edge_dim or 1, device=device)
    edge_attr = edge_attr if layer.edge_dim else None
    by_destination, attr_sorted = sorted_by_destination(edge_index, edge_attr)
    grad = None
    steps = {}

    def add(name, conv, forward):
        nonlocal grad
        leaf = x.to(dtype).requires_grad_()
        if grad is None:
            with torch.no_grad():
                grad = torch.randn_like(forward(leaf))
        steps[name] = step_of(forward, leaf, list(conv.parameters()), grad)

    def with_edges(conv, edges, attr):
        attr = None if attr is None else attr.to(dtype)
        if fresh:
            return lambda x: call(conv, x, edges.clone(), attr)
        return lambda x: call(conv, x, edges, attr)

    ours, stock = ours.to(dtype), stock.to(dtype)
    add("ours", ours, with_edges(ours, edge_index, edge_attr))
    add("pyg_sorted", stock, with_edges(stock, by_destination, attr_sorted))
    add("pyg", stock, with_edges(stock, edge_index, edge_attr))
    if dgl is not None and not fresh and dtype is torch.float32:
        add("dgl", stock, dgl(stock, edge_index, n))

    exact = copy.deepcopy(stock).double()
    wide = x.to(dtype).double().requires_grad_()
    attr = None if edge_attr is None else edge_attr.to(dtype).double()
    results = step_of(
        lambda x: call(exact, x, edge_index, attr),
        wide,
        list(exact.parameters()),
        grad.double(),
    )()
    return steps, results


def errors_of(results, exact):
    """L2-relative errors of output and gradients; 0 for what cancels to nothing."""
    errors = []
    for got, want in zip(results, exact, strict=True):
        is_zero = want.norm() <= 1e-6 * want.numel() ** 0.5
        error = (got.double() - want).norm() / want.norm()
        errors.append(0.0 if is_zero else error.item())
    return errors


def verify(name, steps, exact, tolerance):
    """Each contender's errors may be `tolerance`, or twice those of PyG's own layer
    where they are larger: a maximum of near equals picks another edge in another
    rounding."""
    errors = {key: errors_of(step(), exact) for key, step in steps.items()}
    stock = errors["pyg"]
    if not all(error <= 0.3 for error in stock):
        raise SystemExit(f"{name}: PyG's own errors are {stock}")
    for key, found in errors.items():
        for i, (error, its) in enumerate(zip(found, stock, strict=True)):
            if not error <= max(tolerance, 2 * its):
                raise SystemExit(
                    f"{name}, {key}: relative error {error:.1e} of result {i}, PyG's "
                    f"is {its:.1e}"
                )


# ------------------------------------------------------------------------------- memory


def _resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def return_memory():
    """Lets glibc give freed blocks back at once, so that a peak is of live bytes."""
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(mmap_threshold, 2**16)
    libc.mallopt(trim_threshold, 2**16)
    libc.mallopt(top_pad, 0)
    libc.malloc_trim(0)


def peak_extra_bytes(step, device=CPU):
    """What one step adds at most, results included: to the resident bytes, on CUDA to
    those that torch has allocated."""
    step()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return max(torch.cuda.max_memory_allocated(device) - before, 1)
    return_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _resident("VmRSS")
    results = step()
    peak = _resident("VmHWM") - before
    del results
    return max(peak, 1)


# ------------------------------------------------------------------------------- a case


def run_case(name, layer, case, args, dgl):
    graph, features, heads, dtype, fresh = case
    edge_index, n = GRAPHS[graph]()
    edge_index = edge_index.to(args.device)
    dtype = getattr(torch, dtype)
    steps, exact = contenders(
        layer, edge_index, n, features, heads, dtype, dgl.get(name), fresh
    )
    tolerance = layer.tolerance if dtype is torch.float32 else 3e-2
    _fallback.reset()
    verify(f"{name} on {graph}", steps, exact, tolerance)
    del exact
    fallbacks = [r for found in _fallback.counts().values() for r in found["fallback"]]
    memory = {key: peak_extra_bytes(step, args.device) for key, step in steps.items()}
    (measure.recycle_memory if args.recycle else measure.plain_memory)()
    slow = {key: 2 for key in ("pyg", "pyg_sorted")}
    seconds = measure.interleave(
        steps, args.rounds, measure.clock_of(args.device), every=slow, settle=True
    )
    return_memory()
    return {
        "layer": name,
        "graph": graph,
        "nodes": n,
        "edges": edge_index.shape[1],
        "features": features,
        "heads": heads,
        "dtype": str(dtype).removeprefix("torch."),
        "with_build": fresh,
        "fallbacks": fallbacks,
        "forward_backward_seconds": seconds,
        "peak_extra_bytes": memory,
    }


def judge(case):
    """Adds the ratios to a case."""
    seconds, memory = case["forward_backward_seconds"], case["peak_extra_bytes"]
    for key in seconds:
        if key != "ours":
            per_round = measure.ratios(seconds[key], seconds["ours"])
            case[f"{key}_ratio"] = measure.quartiles(per_round)
            case[f"{key}_memory_ratio"] = memory[key] / memory["ours"]
    return case


HEADER = (
    f"{'layer':<14}{'graph':<12}{'F':>4}{'H':>3} {'dtype':<9}{'f+b ms':>9}"
    f"{'sorted':>8}{'pyg':>8}{'dgl':>8}   {'MiB':>7}{'sorted':>8}{'dgl':>7}"
)


def table_line(case):
    seconds = case["forward_backward_seconds"]["ours"]

    def ratio(key):
        return f"{case[key][1]:.1f}x" if key in case else "-"

    def share(key):
        return f"{case[key]:.1f}x" if key in case else "-"

    return (
        f"{case['layer']:<14}{case['graph']:<12}{case['features']:>4}{case['heads']:>3}"
        f" {case['dtype']:<9}{1e3 * measure.median(seconds):>9.2f}"
        f"{ratio('pyg_sorted_ratio'):>8}{ratio('pyg_ratio'):>8}{ratio('dgl_ratio'):>8}"
        f"   {case['peak_extra_bytes']['ours'] / 2**20:>7.1f}"
        f"{share('pyg_sorted_memory_ratio'):>8}{share('dgl_memory_ratio'):>7}"
        + ("  with build" if case["with_build"] else "")
        + ("  fallback: " + case["fallbacks"][0] if case["fallbacks"] else "")
    )


def summary(cases, layers):
    """One line per bar, over the headline cases (mesh6, float32)."""
    headline = [c for c in cases if c["graph"] == "mesh6" and c["dtype"] == "float32"]
    lines = []
    if not headline:
        return ["no case on mesh6: no bar was measured"]
    mean = statistics.geometric_mean(c["pyg_sorted_ratio"][1] for c in headline)
    lines.append(
        f"sorted PyG, geometric mean of {len(headline)} layers: {mean:.1f}x; bar 10x: "
        f"{_verdict(mean >= 10)}"
    )
    for case in headline:
        layer, ratio = layers[case["layer"]], case["pyg_sorted_ratio"][1]
        lines.append(
            f"sorted PyG, {case['layer']}: {ratio:.1f}x; bar {layer.bar:g}x: "
            f"{_verdict(ratio >= layer.bar)}"
        )
        if "dgl_ratio" in case and layer.dgl_bar:
            ratio = case["dgl_ratio"][1]
            lines.append(
                f"DGL's operators, {case['layer']}: {ratio:.1f}x; bar "
                f"{layer.dgl_bar:g}x: {_verdict(ratio >= layer.dgl_bar)}"
            )
    worst = min(headline, key=lambda c: c["pyg_sorted_memory_ratio"])
    share = worst["pyg_sorted_memory_ratio"]
    lines.append(
        f"peak extra memory, PyG's in ours: at least {share:.1f} ({worst['layer']}); "
        f"bar 5: {_verdict(share >= 5)}"
    )
    return lines


def _verdict(holds):
    return "holds" if holds else "MISSED"


# ------------------------------------------------------------------------- command line


def available(layers):
    """The layers that gnnoffload.nn has; the others are named."""
    found = {}
    for name, layer in layers.items():
        try:
            layer.make(go.nn, 8, 2)
        except AttributeError as error:
            print(f"{name}: not there yet ({str(error).splitlines()[0]})")
            continue
        found[name] = layer
    return found


def main(title, layers, matrix, quick, argv=None):
    """Runs `matrix` (or `quick`), a list of (layer name, case), a case being (graph, F,
    H, dtype, with build)."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="small graphs only")
    parser.add_argument("--layers", nargs="+", help="only these layers")
    parser.add_argument("--graphs", nargs="+", help="only these graphs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dgl", help="folder that holds DGL 2.1 (see layer_peers.py)")
    parser.add_argument(
        "--recycle",
        action="store_true",
        help="keep freed memory, so that no contender pays for fresh pages",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args(argv)
    try:
        args.device = device_named(args.device)
    except go.DeviceError as error:
        parser.error(str(error))

    torch.set_num_threads(1)
    dgl = {}
    if args.device.type == "cuda":
        print("DGL's CPU wheel is left out on CUDA")
    elif args.dgl:
        dgl = layer_peers.dgl_layers(args.dgl)
    else:
        print("DGL is left out: --dgl DIR says where it is (layer_peers.py)")
    layers = available(layers)
    cases = [(n, c) for n, c in (quick if args.quick else matrix) if n in layers]
    if args.layers:
        cases = [(n, c) for n, c in cases if n in args.layers]
    if args.graphs:
        cases = [(n, c) for n, c in cases if c[0] in args.graphs]
    print(HEADER)
    done = []
    for name, case in cases:
        done.append(judge(run_case(name, layers[name], case, args, dgl)))
        print(table_line(done[-1]), flush=True)
    lines = summary(done, layers) if done else ["nothing to measure"]
    print("\n" + "\n".join(lines))
    if not (args.no_save or args.quick or args.layers or args.graphs):
        result = measure.facts(["torch", "torch_geometric"], args.device)
        result["versions"]["dgl"] = layer_peers.version(args.dgl) if dgl else None
        result |= {"recycle": args.recycle, "summary": lines, "cases": done}
        name = title.split()[0].lower().rstrip(":")
        measure.save(f"{name}_recycle" if args.recycle else name, result)
    return done
