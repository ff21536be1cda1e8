"""The measuring stages of a GPU day, each a function (device, scale) -> result dict.

Every one checks what it measures before it times it, and runs small on a CPU as well,
which is how its code is tested where there is no GPU.
"""

import contextlib
import functools
import gc
import time

import torch

import gnnoffload as go
from benchmarks.gpu_ledger import STEPS, figures
from gnnoffload import _C, _copy_matrix
from gnnoffload._cuda_lane import wait_for
from gnnoffload.demo.offload_peers import PEERS, peer
from gnnoffload.demo.variants import CheckpointBlock
from gnnoffload.mesh import icosphere
from gnnoffload.nn import InteractionNetwork

GRAPHCAST = {"level": 6, "width": 512, "layers": 16}  # its processor, 0.25 degrees
SMALL = {"level": 2, "width": 16, "layers": 2}
EDGE_TENSORS = 6  # [E, C] in float32 that a block keeps for backward, about


# ------------------------------------------------------------------------------ copies


def copies(device, small):
    """The copy matrix, and the figures of it that a machine profile of the simulator
    has."""
    if device.type != "cuda":
        raise Skip("copies need a CUDA device")
    sizes = _copy_matrix.SIZES[:3] if small else _copy_matrix.SIZES
    found = _copy_matrix.copy_matrix(device.index, sizes)
    return {"matrix": found, "profile": profile_of(found)}


def profile_of(found):
    """out_rate, in_rate, both_percent, pageable_rate, copy_latency (ns).

    A copy of n bytes takes latency + n / rate: the line through the smallest and the
    largest size that were measured.
    """
    if isinstance(found["pinned"], str):
        return {"problem": found["pinned"]}
    rows = zip(found["sizes"], found["pinned"], strict=True)
    (small, slow), *_, (large, fast) = [(n, row) for n, row in rows if all(row)]
    seconds = [(small / slow[way], large / fast[way]) for way in (0, 1)]
    rates = [(large - small) / (last - first) for first, last in seconds]
    latency = min(seconds[way][0] - small / rates[way] for way in (0, 1))
    profile = {
        "out_rate": rates[0],
        "in_rate": rates[1],
        "both_percent": 100 * fast[2] / (fast[0] + fast[1]),
        "copy_latency": max(0, round(1e9 * latency)),
    }
    if not isinstance(found["pageable"], str):
        profile["pageable_rate"] = [row for row in found["pageable"] if all(row)][-1][0]
    return profile


# -------------------------------------------------------------------------------- spmm


def spmm(device, small):
    """Ours and cuSPARSE (torch.sparse) on a mesh, beside the device's memory rate.

    The roofline counts what must move at least: each index and weight once, x and y
    once; x read again from memory lowers the fraction.
    """
    mesh = icosphere(2 if small else 8)
    n, rows = mesh.num_nodes, {}
    graph = go.Graph(mesh.edge_index, (n, n)).to(device)
    source, destination = mesh.edge_index.to(device)
    weight = torch.rand(mesh.num_edges, device=device)
    index = torch.stack([destination, source])
    coo = torch.sparse_coo_tensor(index, weight, (n, n)).coalesce()
    theirs = coo.to_sparse_csr()
    rate = memory_rate(device, small)
    for features in (16,) if small else (64, 256):
        x = torch.randn(n, features, device=device)
        ours, peers = go.spmm(graph, x, weight), theirs @ x
        if not torch.allclose(ours, peers, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"spmm differs from torch.sparse at {features} features")
        moved = mesh.num_edges * 8 + 8 * n + 2 * n * features * 4
        seconds = {
            "gnnoffload": clock(device, functools.partial(go.spmm, graph, x, weight)),
            "torch.sparse": clock(device, functools.partial(torch.mm, theirs, x)),
        }
        rows[str(features)] = {
            "seconds": seconds,
            "roofline_fraction": {k: moved / s / rate for k, s in seconds.items()},
        }
    return {"nodes": n, "edges": mesh.num_edges, "memory_rate": rate, "features": rows}


# -------------------------------------------------------------------------- reductions


def reductions(device, small):
    """Max, min and four statistics at once, forward and backward, on a mesh, beside
    the device's memory rate and torch's scatter_reduce.

    Two rooflines for each: "compulsory" moves every array once, "no_reuse" every
    neighbour's row once an edge.
    """
    mesh = icosphere(2 if small else 8)
    n, n_edges = mesh.num_nodes, mesh.num_edges
    graph = go.Graph(mesh.edge_index, (n, n)).to(device)
    source, destination = mesh.edge_index.to(device)
    rate, rows, features = memory_rate(device, small), {}, 16 if small else 64
    x = torch.randn(n, features, device=device, requires_grad=True)
    index = destination[:, None].expand(-1, features)

    def scatter(name):
        empty = x.new_zeros(n, features)
        return empty.scatter_reduce(0, index, x[source], name, include_self=False)

    peers = {"max": "amax", "min": "amin"}
    for names in (("max",), ("min",), ("mean", "min", "max", "std")):
        ours = go.aggregate(graph, x, names)
        grads = [torch.randn_like(y) for y in ours]
        backward = functools.partial(
            torch.autograd.grad, ours, x, grads, retain_graph=True
        )
        forward = functools.partial(go.aggregate, graph, x, names)
        seconds = {
            "forward": clock(device, forward),
            "backward": clock(device, backward),
        }
        if len(names) == 1:
            theirs = scatter(peers[names[0]])
            again = functools.partial(
                torch.autograd.grad, theirs, x, grads, retain_graph=True
            )
            if not torch.equal(ours[0], theirs) or not torch.allclose(
                backward()[0], again()[0], rtol=1e-4, atol=1e-4
            ):
                raise RuntimeError(f"{names[0]} differs from torch.scatter_reduce")
            seconds["scatter_reduce forward"] = clock(
                device, functools.partial(scatter, peers[names[0]])
            )
            seconds["scatter_reduce backward"] = clock(device, again)
        moved = reduction_bytes(n, n_edges, features, names)
        rows[" ".join(names)] = {
            "seconds": seconds,
            "roofline_fraction": {
                way: {k: b / seconds[way] / rate for k, b in bounds.items()}
                for way, bounds in moved.items()
            },
        }
    return {"nodes": n, "edges": n_edges, "memory_rate": rate, "features": features,
            "reductions": rows}  # fmt: skip


def reduction_bytes(n, n_edges, features, names):
    """Bytes of each direction at either bound: float32, int32 indices, int8 args."""
    extremes = len({"min", "max"} & set(names))
    linear = len(names) > extremes  # has the rows a, b and the mean
    index, row = 4 * n_edges + 8 * n, 4 * features
    written = n * (len(names) * row + extremes * features + linear * row)
    # of a destination: gradients and args of the extremes, a and b
    read = extremes * (row + features) + 2 * linear * row
    own = n * row * (1 + linear) + extremes * n_edges  # d_x, x; numbers of the edges
    back = index + 4 * n_edges + own
    return {
        "forward": {
            "compulsory": index + n * row + written,
            "no_reuse": index + n_edges * row + written,
        },
        "backward": {
            "compulsory": back + n * read,
            "no_reuse": back + n_edges * read,
        },
    }


def memory_rate(device, small):
    """Bytes per second of a + b -> c, far beyond the caches."""
    a, b, c = (torch.ones(2**18 if small else 2**28, device=device) for _ in range(3))
    return 3 * a.nbytes / clock(device, functools.partial(torch.add, a, b, out=c))


def clock(device, run, calls=20):
    """Seconds of one call: the median of three samples, after warming up."""
    run(), run()
    samples = []
    for _ in range(3):
        wait_for(device)
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        wait_for(device)
        samples.append((time.perf_counter() - begin) / calls)
    return sorted(samples)[1]


# ----------------------------------------------------------------------------- offload


class Processor(torch.nn.Module):
    """The processor of an encode-process-decode mesh GNN."""

    def __init__(self, shape, block):
        super().__init__()
        layers = range(shape["layers"])
        self.blocks = torch.nn.ModuleList(block(shape["width"]) for _ in layers)

    def forward(self, x, graph, e):
        for block in self.blocks:
            x, e = block(x, graph, e)
        return x.square().mean() + e.square().mean()


def offload(device, small):
    """Step times and peaks of the processor: plain, checkpoint, the peers, and ours at
    a quarter of the saved bytes and at "auto"; predicted beside measured."""
    shape = fitting(SMALL if small else GRAPHCAST, device)
    mesh = icosphere(shape["level"])
    n = mesh.num_nodes
    graph = go.Graph(mesh.edge_index, (n, n)).to(device)
    torch.manual_seed(0)
    x = torch.randn(n, shape["width"], device=device, requires_grad=True)
    e = torch.randn(mesh.num_edges, shape["width"], device=device, requires_grad=True)
    inputs, store = (x, graph, e), "host" if device.type == "cuda" else "ram"
    keep = {"store": store, "min_bytes": 1024 if small else "1MiB"}

    def model(block=InteractionNetwork):
        torch.manual_seed(1)
        return Processor(shape, block).to(device)

    plain = model()
    counting = go.offload("8TiB", **keep)  # moves nothing, counts
    gradient = step(plain, inputs, counting)
    saved = counting.report().block_bytes
    quarter = go.offload(saved // 4, **keep)
    if not torch.equal(step(plain, inputs, quarter), gradient):
        raise RuntimeError("offload changed a gradient")
    contexts = {"plain": (plain, None), "checkpoint": (model(CheckpointBlock), None)}
    for name in PEERS[:2] if device.type == "cpu" else PEERS:
        contexts[name] = (plain, peer(name, device))
    contexts["offload quarter"] = (plain, quarter)
    contexts["offload auto"] = (plain, go.offload("auto", **keep))
    variants = {}
    for name, (network, context) in contexts.items():
        try:
            variants[name] = run(device, network, inputs, context)
        except torch.OutOfMemoryError as error:
            variants[name] = {"problem": str(error).splitlines()[0]}
    return {"shape": shape, "nodes": n, "edges": mesh.num_edges, "saved_bytes": saved,
            "variants": variants, "predicted": predict(device, variants)}  # fmt: skip


def fitting(shape, device):
    """Fewer layers where plain training would not fit 60 % of the device."""
    if device.type != "cuda":
        return shape
    edges = 2 * 30 * (4 ** (shape["level"] + 1) - 1) // 3
    layer = EDGE_TENSORS * 4 * edges * shape["width"]
    room = 0.6 * torch.cuda.get_device_properties(device).total_memory
    return shape | {"layers": max(1, min(shape["layers"], int(room / layer)))}


def step(model, inputs, context):
    """One forward and backward; the gradient of the last block's first parameter."""
    model.zero_grad(set_to_none=True)
    inputs[0].grad = inputs[2].grad = None
    with context or contextlib.nullcontext():
        loss = model(*inputs)
    loss.backward()
    return next(model.blocks[0].parameters()).grad.clone()


def run(device, model, inputs, context):
    """STEPS timed steps after three that warm up."""
    on_cuda = device.type == "cuda"
    gc.collect()
    for _ in range(3):
        step(model, inputs, context)
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(STEPS):
        wait_for(device)
        begin = time.perf_counter()
        step(model, inputs, context)
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    memory = {"peak_allocated": None, "peak_reserved": None, "pinned": 0}
    if on_cuda:
        memory["peak_allocated"] = torch.cuda.max_memory_allocated(device)
        memory["peak_reserved"] = torch.cuda.max_memory_reserved(device)
    if isinstance(context, go.offload):
        report = context.report()
        memory["pinned"] = report.tier_bytes
        names = ("bytes_out", "bytes_in", "hidden_fraction", "stall", "budget")
        memory |= {name: getattr(report, name) for name in names}
        memory["store_high_water"] = report.store_high_water
        memory["live_peak"] = report.peak_out
    return figures(seconds, **memory)


def predict(device, variants):
    """Seconds that a perfect overlap would take beside those measured."""
    if device.type != "cuda" or "problem" in variants["plain"]:
        return {"problem": "needs a CUDA device and a plain run that fits"}
    out, back, _ = _C.copy_rates("pinned", [64 << 20], device.index)[0]
    plain, found = variants["plain"]["median"], {}
    for name, row in variants.items():
        if row.get("bytes_out"):
            needed = max(plain, row["bytes_out"] / out, row["bytes_in"] / back)
            found[name] = {"predicted": needed, "measured": row["median"]}
    return found


class Skip(Exception):
    """A stage that cannot run here; the text says why."""
