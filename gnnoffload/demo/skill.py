"""Does it learn? Trains a small mesh GNN to step the field and rolls it out.

Training data are exact: fields of several bells, rotated about random axes, never
within 20 degrees of the test's. The test is Williamson's bell about the test axis, at a
tilt and with a field not trained on, 96 steps of 2.5 hours: ten days.
"""

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gnnoffload import Graph
from gnnoffload.demo import advection as adv
from gnnoffload.demo.model import advance, inputs, mesh_gnn
from gnnoffload.mesh import Icosphere, icosphere

HOURS = 2.5  # of one step; a bell moves about half an edge of level 4
TILT = 0.8  # radians between the test axis and the pole
APART = np.cos(np.radians(20))
MARKS = (1, 12, 96)  # steps after which the error is taken
INCREMENT = 0.03  # the loss's unit: about the spread of one step's changes


@dataclass(frozen=True)
class Plan:
    """How much to train; all of it follows from `seed`."""

    level: int = 4
    width: int = 32
    layers: int = 2
    steps: int = 900
    rate: float = 4e-3
    fields: int = 12  # stepped by one stencil at a time
    unrolled: int = 60  # steps trained through at most; grows from 1
    seed: int = 0


class Stepper(torch.nn.Module):
    """A model with its mesh: flow -> stencil."""

    def __init__(self, plan: Plan):
        super().__init__()
        torch.manual_seed(plan.seed)
        self.mesh = icosphere(plan.level)
        self.graph = Graph(self.mesh.edge_index, (self.mesh.num_nodes,) * 2)
        self.model = mesh_gnn(plan.width, plan.layers)

    def forward(self, flow: adv.Flow) -> tuple[Tensor, Tensor]:
        wind, edges = inputs(self.mesh, flow, HOURS)
        return self.model(wind, self.graph, edges)


def train(plan: Plan, progress=lambda done, loss: None) -> Stepper:
    """Trains on random flows; calls `progress(share done, loss)` after each step."""
    stepper = Stepper(plan)
    mesh = stepper.mesh
    weight = torch.as_tensor(mesh.areas / mesh.areas.mean()).float()[:, None]
    optimizer = torch.optim.Adam(stepper.parameters(), lr=plan.rate)
    random = np.random.default_rng(plan.seed)
    for step in range(plan.steps):
        done = step / plan.steps
        for group in optimizer.param_groups:
            warm, cosine = min(1, (step + 1) / 50), (1 + np.cos(np.pi * done)) / 2
            group["lr"] = plan.rate * warm * max(cosine, 1e-3)
        flow, bells = _random_flow(random), Bells(random, plan.fields)
        last = 1 + int(random.random() * done * plan.unrolled)
        stencil, fields, loss = stepper(flow), bells.at(mesh, flow, 0), 0.0
        for k in range(1, last + 1):
            fields = advance(stepper.graph, stencil, fields)
            if k in (1, last):  # a step's own error, and what it grows to
                error = (fields - bells.at(mesh, flow, k)) / INCREMENT
                loss = loss + (weight * error.square()).mean() / k
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stepper.parameters(), 1.0)
        optimizer.step()
        progress((step + 1) / plan.steps, loss.item())
    return stepper


@torch.no_grad()
def rollout(stepper: Stepper, flow: adv.Flow, steps: int = MARKS[-1]) -> dict:
    """The model's forecast of the bell beside the truth and the baselines.

    Returns:
        For each step in `MARKS`, {l2_model, l2_persistence, l2_upwind}, and under
        "fields" {truth, model, upwind} as arrays [N] at 12 steps.
    """
    mesh, stencil = stepper.mesh, stepper(flow)
    start = adv.bell(mesh.points)
    upwind_scheme, upwind = adv.Upwind(mesh, flow, HOURS), start
    field, result = torch.as_tensor(start).float()[:, None], {}
    for step in range(1, steps + 1):
        field = advance(stepper.graph, stencil, field)
        upwind = upwind_scheme.step(upwind)
        if step not in MARKS:
            continue
        truth = adv.exact(mesh, flow, step * HOURS)
        model = field[:, 0].double().numpy()
        result[step] = {
            "l2_model": adv.l2(mesh, model, truth),
            "l2_persistence": adv.l2(mesh, start, truth),
            "l2_upwind": adv.l2(mesh, upwind, truth),
        }
        if step == 12:
            result["fields"] = {"truth": truth, "model": model, "upwind": upwind}
    return result


def _random_flow(random: np.random.Generator) -> adv.Flow:
    """Any axis that is not within 20 degrees of the test's."""
    test = adv.tilted(TILT).axis
    while True:
        axis = _random_unit(random)
        if abs(axis @ test) < APART:
            return adv.Flow(axis)


class Bells:
    """Fields that are each a sum of six bells of either sign and their own widths."""

    def __init__(self, random: np.random.Generator, fields: int, each: int = 6):
        self.centre = np.stack([_random_unit(random) for _ in range(fields * each)])
        self.radius = random.uniform(0.25, 0.6, fields * each)
        self.height = random.uniform(-1, 1, fields * each)
        self.fields = fields

    def at(self, mesh: Icosphere, flow: adv.Flow, step: int) -> Tensor:
        """[N, fields] exact after `step` steps."""
        centre = flow.back(self.centre, -step * HOURS)  # where the flow took them
        distance = np.arccos(np.clip(mesh.points @ centre.T, -1, 1))
        shape = (1 + np.cos(np.pi * np.minimum(distance / self.radius, 1))) / 2
        each = (self.height * shape).reshape(mesh.num_nodes, self.fields, -1)
        return torch.as_tensor(each.sum(axis=2)).float()


def _random_unit(random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=3)
    return vector / np.linalg.norm(vector)


def main(argv: list[str] | None = None) -> None:
    """A process of the demo: prints progress, writes errors (JSON) and fields."""
    parser = argparse.ArgumentParser(prog="python -m gnnoffload.demo.skill")
    for name, field in Plan.__dataclass_fields__.items():
        parser.add_argument(
            f"--{name}", type=type(field.default), default=field.default
        )
    parser.add_argument("--out", default="skill")
    options = vars(parser.parse_args(argv))
    out = options.pop("out")
    plan, begin = Plan(**options), time.perf_counter()
    stepper = train(plan, lambda done, loss: print(f"progress {done:.4f}", flush=True))
    result = rollout(stepper, adv.tilted(TILT))
    fields = result.pop("fields")
    np.savez(f"{out}.npz", **fields)
    result["train_seconds"] = time.perf_counter() - begin
    with open(f"{out}.json", "w") as file:
        json.dump({**options, **result}, file)


if __name__ == "__main__":
    main()
