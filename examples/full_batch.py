"""One full-batch training step on a graph of ogbn-products' shape, on one machine.

    python examples/full_batch.py --nodes 2.4e6

A Kronecker (R-MAT) graph with 25.26 undirected edges a node, 100 features and 47
classes as ogbn-products has, and a 3-layer SAGE of width 256 with mean aggregation. One
message tensor [E, 256] would take 63 GB in bfloat16, 127 GB in float32; no layer
here makes one. With `--budget` what backward needs beyond it goes to the spill file.
"""

import argparse
import contextlib
import resource
import time
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import gnnoffload as go
from gnnoffload._cuda_lane import device_named, wait_for
from gnnoffload.config import format_bytes

EDGES_PER_NODE = 61_859_140 / 2_449_029  # ogbn-products, undirected
FEATURES, CLASSES = 100, 47
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK = 2**22  # edges drawn at a time


def kronecker_edges(nodes: int, edges: int, seed: int = 0) -> torch.Tensor:
    """[2, 2 * edges] int32: R-MAT edges (0.57, 0.19, 0.19, 0.05), then their reverses.

    Each level of the recursion draws one of four quadrants with one random byte. Node
    numbers are shuffled; those beyond `nodes` wrap around. Repeated edges stay.
    """
    random = np.random.default_rng(seed)
    shuffle = random.permutation(nodes).astype(np.int32)
    result = torch.empty(2, 2 * edges, dtype=torch.int32)
    halves = result.numpy()
    levels = max(1, (nodes - 1).bit_length())
    for begin in range(0, edges, CHUNK):
        count = min(CHUNK, edges - begin)
        ends = np.zeros((2, count), dtype=np.int32)
        for _ in range(levels):
            draw = random.integers(0, 256, count, dtype=np.uint8)
            ends *= 2
            ends[0] += draw >= 195  # of 256: 146 neither, 49 only [1], 49 only [0], 12
            ends[1] += ((draw >= 146) & (draw < 195)) | (draw >= 244)
        ends = shuffle[ends % nodes]
        halves[:, begin : begin + count] = ends
        halves[:, edges + begin : edges + begin + count] = ends[::-1]
    return result


class SAGE(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype):
        super().__init__()
        sizes = [FEATURES, width, width, CLASSES]
        convs = (go.nn.SAGEConv(a, b) for a, b in pairwise(sizes))
        self.convs = nn.ModuleList(convs).to(dtype)

    def forward(self, x, graph):
        for conv in self.convs[:-1]:
            x = conv(x, graph).relu_()
        return self.convs[-1](x, graph)


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--nodes", type=float, default=2.4e6)
    add("--width", type=int, default=256)
    add("--dtype", choices=DTYPES, default="float32")
    add("--budget", help='saved bytes to keep in memory, as "2GiB"; default: all')
    add("--spill-dir")
    add("--steps", type=int, default=1)
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args(argv)
    try:
        device = device_named(options.device)
    except go.DeviceError as error:
        parser.error(str(error))
    nodes, dtype = int(options.nodes), DTYPES[options.dtype]
    edges = round(nodes * EDGES_PER_NODE)
    torch.manual_seed(0)

    begin = time.perf_counter()
    edge_index = kronecker_edges(nodes, edges)
    drawn = time.perf_counter()
    graph = go.Graph(edge_index, (nodes, nodes)).to(device)
    del edge_index
    built = time.perf_counter()
    message = 2 * edges * options.width * dtype.itemsize
    print(
        f"{graph}: drawn in {drawn - begin:.1f} s, built in {built - drawn:.1f} s; one "
        f"message tensor would take {format_bytes(message)}"
    )

    x = torch.randn(nodes, FEATURES, dtype=dtype).to(device)
    labels = torch.randint(CLASSES, (nodes,)).to(device)
    model = SAGE(options.width, dtype).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    around = contextlib.nullcontext()
    if options.budget is not None:
        store = "file" if device.type == "cpu" else "host"
        around = go.offload(options.budget, store=store, spill_dir=options.spill_dir)
    losses, seconds = [], []
    for _ in range(options.steps):
        begin = time.perf_counter()
        with around:
            loss = nn.functional.cross_entropy(model(x, graph), labels)
        wait_for(device)
        forward = time.perf_counter() - begin
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
        print(
            f"step: {seconds[-1]:.1f} s (forward {forward:.1f}), loss {losses[-1]:.4f}"
        )
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak resident memory of the process: {format_bytes(peak)}")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        print(f"peak allocated on {device}: {format_bytes(peak)}")
    result = {
        "edges": graph.num_edges,
        "message_bytes": message,
        "losses": losses,
        "seconds": seconds,
        "peak_bytes": peak,
        "bytes_out": 0,
    }
    if options.budget is not None:
        print(around.report())
        result["bytes_out"] = around.report().bytes_out
    return result


if __name__ == "__main__":
    main()
