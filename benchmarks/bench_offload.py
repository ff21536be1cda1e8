"""Speed of the whole: a deep mesh GNN with offload beside the same without.

    make bench OP=offload
    make bench OP=offload ARGS="--level 4 --layers 8 --rounds 3"

Forward and backward of `layers` InteractionNetworks on an icosahedral multimesh, plain
and with a quarter of the saved bytes as budget, interleaved step by step in one process
after gradients were compared bit for bit. The rates of the link are measured in the
same run, as `python -m gnnoffload doctor` does. What a perfect overlap allows is

    predicted = min(1, T / max(T, bytes / B_out, bytes / B_in))

with T the seconds of a plain step and bytes what left per step. Bar: the measured speed
T / T_offload is at least 0.9 of it.
"""

import argparse
import statistics
import time

import torch

import gnnoffload as go
from benchmarks import measure
from gnnoffload import _C, config
from gnnoffload._cuda_lane import device_named, wait_for
from gnnoffload.mesh import icosphere
from gnnoffload.nn import InteractionNetwork

BAR = 0.9
PROBE_BYTES = 256 << 20


class Processor(torch.nn.Module):
    """The processor of an encode-process-decode mesh GNN."""

    def __init__(self, width, layers):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            InteractionNetwork(width) for _ in range(layers)
        )

    def forward(self, x, graph, e):
        for block in self.blocks:
            x, e = block(x, graph, e)
        return x.square().mean() + e.square().mean()


def step(model, inputs, off):
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    begin = time.perf_counter()
    if off is None:
        loss = model(*inputs)
    else:
        with off:
            loss = model(*inputs)
    loss.backward()
    wait_for(loss.device)
    return time.perf_counter() - begin


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.25, help="budget / saved")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spill-dir")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args()
    try:
        device = device_named(options.device)
    except go.DeviceError as error:
        parser.error(str(error))

    torch.manual_seed(0)
    measure.recycle_memory()
    mesh = icosphere(options.level)
    graph = go.Graph(mesh.edge_index, (mesh.num_nodes, mesh.num_nodes))
    inputs = (
        torch.randn(mesh.num_nodes, options.width).to(device),
        graph.to(device),
        torch.randn(mesh.num_edges, options.width).to(device),
    )
    model = Processor(options.width, options.layers).to(device)
    store = {"store": "host"}
    if device.type == "cpu":
        store = {"spill_dir": config.spill_directory(options.spill_dir)}

    counting = go.offload("1TiB", **store)  # moves nothing, counts
    step(model, inputs, counting)
    expected = gradients(model)
    saved = counting.report().block_bytes
    off = go.offload(int(saved * options.share), **store)
    step(model, inputs, off)
    for got, want in zip(gradients(model), expected, strict=True):
        if not torch.equal(got, want):
            raise SystemExit("offload changed a gradient")

    if device.type == "cpu":
        probe = _C.spill_probe(store["spill_dir"], PROBE_BYTES)
    else:
        rates = _C.copy_rates("pinned", [PROBE_BYTES], device.index)[0]
        probe = {"file_system": "page-locked memory", "direct": True}
        probe |= {"rate_out": rates[0], "rate_in": rates[1]}
    plain, moved = [], []
    for _ in range(options.rounds):
        plain.append(step(model, inputs, None))
        moved.append(step(model, inputs, off))
    report = off.report()

    seconds = statistics.median(plain)
    out, back = report.bytes_out, report.bytes_in
    needed = max(seconds, out / probe["rate_out"], back / probe["rate_in"])
    predicted = min(1.0, seconds / needed)
    speeds = [p / m for p, m in zip(plain, moved, strict=True)]
    speed = statistics.median(speeds)
    held = speed >= BAR * predicted
    mib = {
        "saved": saved,
        "budget": saved * options.share,
        "moved out": out,
        "moved in": back,
    }
    print(
        f"level {options.level}, {options.layers} blocks of width {options.width}, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds\n"
        f"{device}, to {probe['file_system']}, direct I/O "
        f"{'yes' if probe['direct'] else 'no'}, "
        f"out {probe['rate_out'] / 1e9:.2f} GB/s, "
        f"in {probe['rate_in'] / 1e9:.2f} GB/s\n"
        + ", ".join(f"{name} {n / 2**20:.0f} MiB" for name, n in mib.items())
        + " a step\n"
        f"plain {seconds:.2f} s, offload {statistics.median(moved):.2f} s a step; "
        f"hidden fraction {report.hidden_fraction:.2f}\n"
        f"speed {speed:.3f} of plain (rounds {min(speeds):.3f} to {max(speeds):.3f}), "
        f"predicted {predicted:.3f}\n"
        f"{'held  ' if held else 'MISSED'} speed >= {BAR} of predicted: "
        f"{speed / predicted:.3f}"
    )
    measure.save(
        "offload" if device.type == "cpu" else "offload_cuda",
        measure.facts(["torch", "numpy"])
        | vars(options)
        | {
            "spill_dir": probe["file_system"],
            "threads": torch.get_num_threads(),
            "direct_io": probe["direct"],
            "rate_out": probe["rate_out"],
            "rate_in": probe["rate_in"],
            "saved_bytes": saved,
            "bytes_out": out,
            "bytes_in": back,
            "plain_seconds": plain,
            "offload_seconds": moved,
            "hidden_fraction": report.hidden_fraction,
            "predicted_speed": predicted,
            "speed": speed,
        },
    )


if __name__ == "__main__":
    main()
