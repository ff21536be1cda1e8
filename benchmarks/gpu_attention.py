"""The attention stage of a GPU day: a graph transformer on a weather model's graphs
beside anemoi's Triton kernel, and GATv2 and minimum as fractions of the roofline beside
turbo-gnn's published figures.

anemoi-models is measured in the same run where it can be imported; torch's gather and
scatter, which is what PyG's layers do, always is where its messages fit. turbo-gnn is
on no package index: its figures were taken on an A100 by its authors, and compare as
fractions of what that GPU's memory could move.
"""

import functools
import importlib

import torch
from torch.nn.functional import leaky_relu

import gnnoffload as go
from benchmarks import gpu_stages
from benchmarks.layer_bench import sorted_by_destination
from gnnoffload.mesh import icosphere

# AIFS at N320: grid points, and the edges of its encoder and decoder for each
GRID = {"points": 542_080, "level": 6, "encoder": 1.57, "decoder": 3}
SMALL_GRID = {"points": 300, "level": 1, "encoder": 1.57, "decoder": 3}
HEADS, CHANNELS, EDGE_DIM = 16, 32, 11
# anemoi-core's pull request 631, H200, float16, milliseconds forward and backward
ANEMOI_PUBLISHED = {"era_to_h": 2.77, "h_to_h": 0.83, "h_to_era": 4.87}

# turbo-gnn's logs, A100 of 80 GB, float32, one head: nodes, edges, features and the
# milliseconds of GATv2 forward, backward and of the minimum forward
A100_BYTES_PER_SECOND = 2.039e12
TURBO_PUBLISHED = {
    "ogbn-arxiv": (169_343, 1_335_586, 128, 1.16, 50.7, None),
    "hm-categories": (46_563, 21_461_990, 128, 25.1, 147, 3.2),
    "pokec-regions": (1_632_803, 30_622_564, 64, 20.7, 98, None),
    "ogbn-products": (2_449_029, 123_718_280, 128, 75.7, 467, None),
}
MOST_BYTES = 0.4  # of a device: graphs with more, and peers, are left out


def attention(device, small):
    return {
        "graph_transformer": graph_transformer(device, small),
        "gatv2_and_minimum": rooflines(device, small),
    }


# ------------------------------------------------------------------- graph transformer


def graph_transformer(device, small):
    """Seconds forward and backward on each of three graphs, for ours with edge features
    [E, H, C] as anemoi hands them over and with raw attributes [E, D], for anemoi and
    for torch; each output and gradient checked against torch in float32 first."""
    heads, channels = (2, 8) if small else (HEADS, CHANNELS)
    dtype = torch.float32 if small else torch.float16
    theirs, rows = _anemoi(), {}
    for name, (edges, n_src, n_dst) in weather_graphs(device, small).items():
        torch.manual_seed(0)
        n_edges = edges.shape[1]
        shapes = (n_dst, n_src, n_src)
        q, k, v = (
            torch.randn(n, heads, channels, device=device, dtype=dtype) for n in shapes
        )
        attr = torch.randn(n_edges, EDGE_DIM, device=device, dtype=dtype)
        weight = torch.randn(heads * channels, EDGE_DIM, device=device, dtype=dtype)
        weight /= EDGE_DIM**0.5
        inputs = [q, k, v, (attr @ weight.t()).view(n_edges, heads, channels)]
        graph = go.Graph(edges, (n_src, n_dst))
        contenders = {
            "gnnoffload": (functools.partial(_ours, graph), inputs),
            "gnnoffload, raw attributes": (
                functools.partial(_ours_raw, graph),
                [q, k, v, attr, weight],
            ),
            "torch": (functools.partial(plain_attention, edges, n_dst), inputs),
        }
        if theirs is not None:
            contenders["anemoi"] = theirs(edges, (n_src, n_dst)), inputs
        seconds, problems = compare(name, contenders, torch.randn_like(q))
        rows[name] = {
            "sources": n_src,
            "destinations": n_dst,
            "edges": n_edges,
            "seconds": seconds,
            "problems": problems,
            "published_anemoi_seconds": ANEMOI_PUBLISHED[name] / 1e3,
        }
        if "anemoi" in seconds:
            rows[name]["of_anemoi"] = seconds["anemoi"] / seconds["gnnoffload"]
    return {"heads": heads, "channels": channels, "dtype": str(dtype),
            "edge_dim": EDGE_DIM, "graphs": rows}  # fmt: skip


def _ours(graph, q, k, v, e):
    return go.dot_attention(graph, q, k, v, e, scale=q.shape[2] ** -0.5)


def _ours_raw(graph, q, k, v, attr, weight):
    scale = q.shape[2] ** -0.5
    return go.dot_attention(
        graph, q, k, v, edge_attr=attr, edge_weight=weight, scale=scale
    )


def compare(name, contenders, grad):
    """(seconds, problems) of each contender: a function and its inputs, of which the
    first three get the gradients of torch's in float32. A peer that fails is a
    problem; if ours is wrong, nothing is measured."""
    seconds, problems = {}, {}
    forward, inputs = contenders["torch"]
    exact = results(forward, [t.float() for t in inputs], grad.float())
    for who, (forward, inputs) in contenders.items():
        try:
            found = results(forward, inputs, grad)[:4]
            verify(f"{who} on {name}", found, exact[:4], grad.dtype)
            del found
            seconds[who] = gpu_stages.clock(grad.device, step_of(forward, inputs, grad))
        except Exception as error:
            ours = who.startswith("gnnoffload")
            if ours and not isinstance(error, torch.OutOfMemoryError):
                raise
            problems[who] = str(error).splitlines()[0]
    return seconds, problems


def weather_graphs(device, small):
    """{name: (edge_index sorted by destination, sources, destinations)}: grid to mesh,
    mesh to mesh, mesh to grid."""
    grid = SMALL_GRID if small else GRID
    mesh = icosphere(grid["level"])
    places = torch.as_tensor(mesh.points, dtype=torch.float32, device=device)
    n_grid, n_mesh = grid["points"], mesh.num_nodes
    distance, nearest = nearest_nodes(fibonacci_sphere(n_grid, device), places, 3)
    points = torch.arange(n_grid, device=device)
    up = torch.stack([nearest.flatten(), points.repeat_interleave(3)])
    # the encoder's cutoff: the radius that leaves so many edges for each point
    wanted = int(grid["encoder"] * n_grid)
    within = distance.flatten().argsort(stable=True)[:wanted]
    graphs = {
        "era_to_h": (up.flip(0)[:, within], n_grid, n_mesh),
        "h_to_h": (mesh.edge_index.to(device), n_mesh, n_mesh),
        "h_to_era": (up, n_mesh, n_grid),
    }
    return {
        name: (sorted_by_destination(edges)[0], n_src, n_dst)
        for name, (edges, n_src, n_dst) in graphs.items()
    }


def fibonacci_sphere(n, device):
    """[n, 3] points of equal areas along a spiral from pole to pole."""
    i = torch.arange(n, device=device, dtype=torch.float64)
    z = 1 - (2 * i + 1) / n
    radius, angle = (1 - z * z).sqrt(), i * (torch.pi * (3 - 5**0.5))
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1).float()


def nearest_nodes(points, nodes, k, range_bytes=1 << 29):
    """(distances, indices) [n, k] of the k nodes nearest to each point."""
    rows = max(1, range_bytes // (4 * len(nodes)))
    parts = [torch.cdist(p, nodes).topk(k, largest=False) for p in points.split(rows)]
    return tuple(torch.cat(t) for t in zip(*parts, strict=True))


def plain_attention(edges, n_dst, q, k, v, e):
    """By gather and scatter, messages and all."""
    source, destination = edges
    score = (q[destination] * (k[source] + e)).sum(-1) * q.shape[2] ** -0.5
    alpha = plain_softmax(score, destination, n_dst)
    messages = (v[source] + e) * alpha.unsqueeze(-1)
    return torch.zeros_like(q).index_add(0, destination, messages)


def plain_softmax(score, destination, n):
    """score [E, H]"""
    index = destination.unsqueeze(1).expand_as(score)
    least = score.new_full((n, score.shape[1]), -torch.inf)
    top = least.scatter_reduce(0, index, score.detach(), "amax")
    score = (score - top[destination]).exp()
    total = torch.zeros_like(top).index_add(0, destination, score)
    return score / total[destination]


def _anemoi():
    """A maker of their forward for a graph, or None without their package."""
    try:
        kernel = importlib.import_module("anemoi.models.triton.gt")
        convert = importlib.import_module("anemoi.models.triton.utils")
    except (ImportError, ValueError):  # theirs raises ValueError without Triton
        return None

    def make(edges, size):
        csc, _, reverse = convert.edge_index_to_csc(
            edges, num_nodes=size, reverse=True, edges_are_dst_sorted=True
        )
        attend = kernel.graph_transformer_attention_conv
        return lambda q, k, v, e: attend(q, k, v, e, csc, reverse)

    return make


def step_of(forward, inputs, grad):
    """Forward and backward as one function: (output, gradients...)."""
    leaves = [t.detach().requires_grad_() for t in inputs]

    def step():
        y = forward(*leaves)
        return y, *torch.autograd.grad(y, leaves, grad)

    return step


def results(forward, inputs, grad):
    return step_of(forward, inputs, grad)()


def verify(name, found, exact, dtype):
    """RuntimeError unless each is near in the L2 norm."""
    limit = 1e-4 if dtype is torch.float32 else 2e-2
    for i, (got, want) in enumerate(zip(found, exact, strict=True)):
        error = ((got.float() - want).norm() / want.norm()).item()
        if not error <= limit:
            raise RuntimeError(f"{name}: relative error {error:.1e} of result {i}")


# --------------------------------------------------------------------------- rooflines


def rooflines(device, small):
    """GATv2 forward and backward and the minimum forward on graphs of the published
    shapes: the fraction of the roofline that reads a row for each edge (backward: one
    row in the destination pass, two in the source pass), ours and published."""
    rate = gpu_stages.memory_rate(device, small)
    room = MOST_BYTES * (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else 2**30
    )
    rows = {}
    for name, (n, n_edges, features, *published) in TURBO_PUBLISHED.items():
        if small:
            n, n_edges, features = n // 10_000 + 5, n_edges // 100_000 + 20, 16
        if 60 * n_edges + 24 * n * features > room:
            rows[name] = {"problem": "does not fit this device"}
            continue
        rows[name] = roofline(device, n, n_edges, features, published, rate, room)
    return {"memory_rate": rate, "graphs": rows}


def roofline(device, n, n_edges, features, published, rate, room):
    graph = go.Graph(skewed_edges(n, n_edges, device), (n, n))
    torch.manual_seed(1)
    left, right = (
        torch.randn(n, 1, features, device=device, requires_grad=True) for _ in range(2)
    )
    att = torch.randn(1, features, device=device, requires_grad=True)
    leaves = (left, right, att)
    grad = torch.randn(n, 1, features, device=device)
    rows = n_edges * features * 4
    bytes_moved = {"forward": rows, "backward": 3 * rows, "minimum": rows}
    out = go.gatv2(graph, *leaves)
    x = left.detach().flatten(1)
    runs = {
        "forward": functools.partial(go.gatv2, graph, *leaves),
        "backward": functools.partial(
            torch.autograd.grad, out, leaves, grad, retain_graph=True
        ),
        "minimum": functools.partial(go.spmm, graph, x, reduce="min"),
    }
    result = {"nodes": n, "edges": n_edges, "features": features, "directions": {}}
    messages_fit = 8 * rows <= room
    if messages_fit:
        edges = graph.edge_index
        theirs = functools.partial(plain_gatv2, edges, n)
        want = results(theirs, leaves, grad)
        verify("gatv2", (out, *runs["backward"]()), want, torch.float32)
        del want
        result["torch_seconds"] = gpu_stages.clock(
            device, step_of(theirs, leaves, grad), calls=3
        )
    for (way, run), milliseconds in zip(runs.items(), published, strict=True):
        seconds = gpu_stages.clock(device, run, calls=5)
        fraction = bytes_moved[way] / seconds / rate
        row = {"seconds": seconds, "roofline_fraction": fraction}
        if milliseconds is not None and device.type == "cuda":
            theirs = bytes_moved[way] / (milliseconds / 1e3) / A100_BYTES_PER_SECOND
            row |= {"published_fraction": theirs, "of_published": fraction / theirs}
        result["directions"][way] = row
    return result


def plain_gatv2(edges, n, left, right, att):
    """By gather and scatter, messages and all."""
    source, destination = edges
    message = left[source]
    score = (leaky_relu(message + right[destination], 0.2) * att).sum(-1)
    alpha = plain_softmax(score, destination, n).unsqueeze(-1)
    return torch.zeros_like(left).index_add(0, destination, message * alpha)


def skewed_edges(n, n_edges, device):
    """[2, n_edges] with both ends drawn with probability ~ rank^-0.6, as a power law;
    ranks scattered over the nodes."""
    generator = torch.Generator(device).manual_seed(2)
    draws = torch.rand(2, n_edges, generator=generator, device=device)
    rank = (draws.double() ** (1 / 0.4) * n).long().clamp(max=n - 1)
    return torch.randperm(n, generator=generator, device=device)[rank]
