"""One variant in a process of its own: its memory is nobody else's.

Reads one JSON argument, prints progress lines, and as its last line a JSON result.
"""

import json
import sys
import time

import numpy as np
import torch

from gnnoffload import Graph
from gnnoffload._cuda_lane import device_named, wait_for
from gnnoffload.demo import advection as adv
from gnnoffload.demo import memory, variants
from gnnoffload.demo.model import advance, inputs
from gnnoffload.demo.skill import HOURS, TILT
from gnnoffload.mesh import icosphere


def main() -> None:
    job = json.loads(sys.argv[1])
    result = {"mmap_threshold_fixed": memory.fix_mmap_threshold()}
    baseline = memory.status()["VmHWM"]
    torch.ones(256, 256) @ torch.ones(
        256, 256
    )  # thread pools start: their stacks count
    data = memory.status()["VmData"]
    device = device_named(job.get("device", "cpu"))
    if job.get("limit"):
        memory.limit(job["limit"], device)
    try:
        result |= measure(job, device)
        result["finished"] = True
    except (RuntimeError, MemoryError) as error:
        if not job.get("limit"):
            raise
        result["finished"] = False
        result["error"] = str(error).strip().splitlines()[0]
    hwm = result.pop("hwm", None) or memory.status()["VmHWM"]
    result |= {"baseline_bytes": baseline, "baseline_data_bytes": data}
    on_device = result.pop("device_peak", None)
    result["peak_resident_bytes"] = on_device or hwm - baseline
    print("result " + json.dumps(result), flush=True)


def measure(job: dict, device: torch.device) -> dict:
    """A first step (gradients to a file), `steps` timed ones, then a counting one."""
    variant = job["variant"]
    mesh = icosphere(job["level"])
    model = variants.build(variant, job["width"], job["layers"]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    (wind, edges), now, later = data(mesh)
    wind, edges, now, later = (t.to(device) for t in (wind, edges, now, later))
    graph = mesh.edge_index.to(device)
    if variant != "stock":
        graph = Graph(graph, (mesh.num_nodes, mesh.num_nodes))
    around = variants.context(variant, job.get("budget"), job.get("spill_dir"), device)
    held = Trace(lambda: around.state()["resident"]) if variant == "offload" else None
    on_device = Trace(lambda: torch.cuda.memory_allocated(device))
    for trace in (held, on_device if device.type == "cuda" else None):
        if trace:
            trace.watch(model)

    def step(context=around):
        with context:
            stencil = model(wind, graph, edges)
            loss = (advance(graph, stencil, now) - later).square().mean()
        loss.backward()
        return loss.item()

    seconds, windows = [], []
    for k in range(1 + job["steps"]):
        begin = time.monotonic()
        loss = step()
        if k == 0:
            np.save(job["gradients"], variants.gradients(model).cpu().numpy())
            first_loss = loss
        optimizer.step()
        optimizer.zero_grad()
        wait_for(device)
        end = time.monotonic()
        seconds.append(end - begin)
        windows.append((begin, end))
        print(f"progress {(k + 1) / (1 + job['steps'] + job['count']):.4f}", flush=True)

    result = {
        "hwm": memory.status()["VmHWM"],
        "device_peak": memory.device_peak(device),
        "device_trace": on_device.points,
        "first_step_seconds": seconds[0],
        "seconds_per_step": float(np.median(seconds[1:])) if job["steps"] else None,
        "windows": windows,
        "first_loss": first_loss,
        "bytes_out": 0,
        "bytes_in": 0,
        "hidden_fraction": None,
    }
    if variant == "offload":
        report = around.report()
        result |= {
            "peak_saved_bytes": report.peak_counted,
            "bytes_out": report.bytes_out,
            "bytes_in": report.bytes_in,
            "hidden_fraction": report.hidden_fraction,
            "report": report.to_dict(),
            "trace": held.points,
        }
    elif job["count"]:
        counter = memory.SavedBytes(model.parameters())
        with counter.counting():  # around backward too: a checkpoint saves there
            step()
        result["peak_saved_bytes"] = counter.peak
    return result


def data(mesh):
    """Inputs, the field [N, 1] and the exact one a step later, in float32."""
    flow = adv.tilted(TILT)
    now, later = (adv.exact(mesh, flow, hours)[:, None] for hours in (0, HOURS))
    now, later = torch.as_tensor(now).float(), torch.as_tensor(later).float()
    return inputs(mesh, flow, HOURS), now, later


class Trace:
    """Bytes by somebody's account, noted before and after each block, both ways."""

    def __init__(self, read):
        self.read, self.points = read, []

    def note(self, *_):
        self.points.append((time.monotonic(), self.read()))

    def watch(self, model):
        for block in model.processor:
            block.register_forward_pre_hook(self.note)
            block.register_forward_hook(self._after)

    def _after(self, module, inputs, outputs):
        self.note()
        outputs[1].register_hook(self.note)


if __name__ == "__main__":
    main()
