"""Where offload hides: an MLP of growing width, all-offload against recompute.

    python -m gnnoffload bench mlp-sweep --device cuda
    make bench OP=mlp-sweep ARGS="--widths 64,128 --rows 1024"

Blocks of Linear, GELU, Linear around a residual sum; arithmetic grows with the width's
square, saved bytes with the width, so from some width on copies hide behind the
computation. Variants, one after the other in one process:

    plain       everything saved stays
    offload     everything that can leaves (budget 0)
    recompute   each block is checkpointed; its inputs stay
    both        each block is checkpointed; its inputs leave

Gradients of all four are compared before anything is timed: offload's with plain's and
both's with recompute's bit for bit. Prints per width the time and the peak of each, and
from which width on offload costs less than 5 %.
"""

import argparse
import contextlib
import gc
import resource
import statistics
import time

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gnnoffload as go
from benchmarks import measure
from gnnoffload._cuda_lane import device_named, wait_for
from gnnoffload.config import format_bytes

VARIANTS = {  # name: recomputed, offloaded
    "plain": (False, False),
    "offload": (False, True),
    "recompute": (True, False),
    "both": (True, True),
}
HIDES = 1.05


class Mlp(nn.Module):
    """[rows, width] -> scalar, through `depth` residual blocks."""

    def __init__(self, width, depth):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.recompute = False

    def forward(self, x):
        for block in self.blocks:
            if self.recompute:
                x = x + checkpoint(block, x, use_reentrant=False)
            else:
                x = x + block(x)
        return x.square().mean()


def step(model, x, recompute, off):
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    model.recompute = recompute
    wait_for(x.device)
    begin = time.perf_counter()
    with off or contextlib.nullcontext():
        loss = model(x)
    loss.backward()
    wait_for(x.device)
    return time.perf_counter() - begin


def compare_gradients(model, x, off):
    """Every variant once; raises where offload changed a bit."""
    found = {}
    for name, (recompute, moved) in VARIANTS.items():
        step(model, x, recompute, off if moved else None)
        found[name] = [p.grad.clone() for p in model.parameters()]
    for moved, stays in (("offload", "plain"), ("both", "recompute")):
        for a, b in zip(found[moved], found[stays], strict=True):
            if not torch.equal(a, b):
                raise SystemExit(f"mlp-sweep: {moved} changed a gradient of {stays}")


def peak_of(device):
    """Peak of the device's allocator; on CPU of the whole process, ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def sweep(width, options, device):
    """{variant: seconds, peak, bytes out, hidden fraction} at one width."""
    torch.manual_seed(width)
    model = Mlp(width, options.depth).to(device)
    x = torch.randn(options.rows, width, device=device)
    store = "host" if device.type == "cuda" else options.store
    off = go.offload(0, store=store, min_bytes=options.min_bytes)
    compare_gradients(model, x, off)
    rows = {}
    for name, (recompute, moved) in VARIANTS.items():
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        context = off if moved else None
        step(model, x, recompute, context)  # warms up
        seconds = [step(model, x, recompute, context) for _ in range(options.rounds)]
        rows[name] = {"seconds": seconds, "median": statistics.median(seconds)}
        rows[name] |= {"peak_bytes": peak_of(device)}
        if moved:
            report = off.report()
            rows[name] |= {
                "bytes_out": report.bytes_out,
                "hidden_fraction": report.hidden_fraction,
            }
    return rows


def hides_from(found):
    """The width from which on offload costs less than 5 % of plain; None: nowhere."""
    first = None
    for width, rows in sorted(found.items()):
        hides = rows["offload"]["median"] <= HIDES * rows["plain"]["median"]
        first = (first or width) if hides else None
    return first


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--widths", default="256,512,1024,2048,4096,8192", help="separated by commas")
    add("--rows", type=int, default=16384)
    add("--depth", type=int, default=8)
    add("--rounds", type=int, default=5)
    add("--min-bytes", default="1MiB")
    add("--store", default="ram", choices=("ram", "file"), help="on CPU")
    add("--save", action="store_true", help="write benchmarks/results/mlp_sweep.json")
    options = parser.parse_args(argv)
    try:
        device = device_named(options.device)
    except go.DeviceError as error:
        parser.error(str(error))
    found = {}
    what = "allocated" if device.type == "cuda" else "of the process so far"
    print(f"{'width':>6} {'variant':<10} {'seconds':>9} {'x plain':>8}  peak {what}")
    for width in map(int, options.widths.split(",")):
        rows = found[width] = sweep(width, options, device)
        for name, row in rows.items():
            ratio = row["median"] / rows["plain"]["median"]
            line = f"{width:>6} {name:<10} {row['median']:>9.4f} {ratio:>8.2f}  "
            line += format_bytes(row["peak_bytes"])
            if row.get("hidden_fraction") is not None:
                line += f", {format_bytes(row['bytes_out'])} out, "
                line += f"{100 * row['hidden_fraction']:.0f} % hidden"
            print(line)
    first = hides_from(found)
    print(
        f"offload hides (at most {HIDES} of plain) from width {first} on"
        if first
        else "offload hides at no width measured"
    )
    result = {"device": str(device), "hides_from": first, "widths": found}
    if options.save:
        measure.save("mlp_sweep", measure.facts(["torch"]) | vars(options) | result)
    return result


if __name__ == "__main__":
    main()
