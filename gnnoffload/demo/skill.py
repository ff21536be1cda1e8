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
from gnnoffload.demo.model import flow_inputs, mesh_gnn, node_inputs
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
    steps: int = 1500
    rate: float = 3e-3
    noise: float = 0.01  # added to the input, so that own errors look familiar
    unrolled: int = 3  # steps trained through, in the last `tail` of the training
    tail: float = 0.25
    seed: int = 0


class Stepper(torch.nn.Module):
    """A model with its mesh: field [N] -> field [N] one step later."""

    def __init__(self, plan: Plan):
        super().__init__()
        torch.manual_seed(plan.seed)
        self.mesh = icosphere(plan.level)
        self.graph = Graph(self.mesh.edge_index, (self.mesh.num_nodes,) * 2)
        self.geometry = self.mesh.edge_features()
        self.model = mesh_gnn(plan.width, plan.layers)

    def inputs(self, flow: adv.Flow) -> tuple[Tensor, Tensor]:
        wind, along = flow_inputs(self.mesh, flow, HOURS)
        return wind, torch.cat([self.geometry, along[:, None]], dim=1)

    def forward(self, field: Tensor, inputs: tuple[Tensor, Tensor]) -> Tensor:
        wind, edges = inputs
        return field + self.model(node_inputs(field, wind), self.graph, edges)


def train(plan: Plan, progress=lambda done, loss: None) -> Stepper:
    """Trains on random flows; calls `progress(share done, loss)` after each step."""
    stepper = Stepper(plan)
    mesh = stepper.mesh
    weight = torch.as_tensor(mesh.areas / mesh.areas.mean()).float()
    optimizer = torch.optim.Adam(stepper.parameters(), lr=plan.rate)
    random = np.random.default_rng(plan.seed)
    for step in range(plan.steps):
        done = step / plan.steps
        for group in optimizer.param_groups:
            warm, cosine = min(1, (step + 1) / 50), (1 + np.cos(np.pi * done)) / 2
            group["lr"] = plan.rate * warm * max(cosine, 1e-3)
        flow, field_of = _random_flow(random), _random_field(random)
        inputs = stepper.inputs(flow)
        field = _exact(mesh, flow, 0, field_of)
        field = field + plan.noise * torch.randn_like(field)
        unrolled = plan.unrolled if done >= 1 - plan.tail else 1
        loss = 0.0
        for k in range(1, unrolled + 1):
            field = stepper(field, inputs)
            error = (field - _exact(mesh, flow, k, field_of)) / INCREMENT
            loss = loss + (weight * error.square()).mean() / unrolled
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
    mesh, inputs = stepper.mesh, stepper.inputs(flow)
    start = adv.bell(mesh.points)
    upwind_scheme, upwind = adv.Upwind(mesh, flow, HOURS), start
    field, result = torch.as_tensor(start).float(), {}
    for step in range(1, steps + 1):
        field, upwind = stepper(field, inputs), upwind_scheme.step(upwind)
        if step not in MARKS:
            continue
        truth = adv.exact(mesh, flow, step * HOURS)
        model = field.double().numpy()
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


def _random_field(random: np.random.Generator):
    """A sum of four to eight bells of either sign, as a function of points."""
    bells = [
        (random.uniform(-1, 1), _random_unit(random), random.uniform(0.25, 0.6))
        for _ in range(random.integers(4, 9))
    ]
    return lambda points: sum(h * adv.bell(points, c, r) for h, c, r in bells)


def _random_unit(random: np.random.Generator) -> np.ndarray:
    vector = random.normal(size=3)
    return vector / np.linalg.norm(vector)


def _exact(mesh: Icosphere, flow: adv.Flow, step: int, field_of) -> Tensor:
    return torch.as_tensor(adv.exact(mesh, flow, step * HOURS, field_of)).float()


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
