"""demo.png: the forecast on the sphere, and memory over time of all variants."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.tri import Triangulation

from gnnoffload.demo import advection as adv
from gnnoffload.demo.run import first_offload
from gnnoffload.demo.skill import HOURS, TILT
from gnnoffload.mesh import icosphere

INK, FAINT = "#22303c", "#9aa7b2"
COLOURS = {
    "stock": "#a9a9a9",
    "plain": "#2f6db3",
    "checkpoint": "#e08a1e",
    "offload 1/2": "#1a8f6a",
    "offload": "#1a8f6a",
    "offload 1/4": "#7cc7a6",
    "save_on_cpu, pinned": "#8c6bb1",
    "slide's hooks": "#c0504d",
    "slide's, async": "#d9a3a1",
}
MIB = 2**20
LINES = {  # by whether it is on a CUDA device
    False: "resident memory, from the operating system",
    True: "what torch has allocated, at the host's time",
}


def draw(found: dict, path) -> None:
    """Writes the picture of what `run` found to `path`."""
    style = {
        "font.size": 10.5,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(11, 8.6 if "skill" in found else 5), dpi=150)
        if "skill" in found:
            above, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.05))
            _draw_forecast(above, found["skill"])
        else:
            below = figure
        _draw_memory(below, found)
        figure.savefig(path, facecolor="white")
        plt.close(figure)


# ------------------------------------------------------------------------- the forecast


def _draw_forecast(figure, skill: dict) -> None:
    mesh, fields, at = icosphere(skill["level"]), skill["fields"], skill["12"]
    flow = adv.tilted(TILT)
    now = flow.back(adv.BELL_CENTRE[None], -12 * HOURS)[0]
    view = _view(now + 0.55 * adv.BELL_CENTRE)
    error = fields["model"] - fields["truth"]
    most = np.abs(error).max()
    panels = (
        ("Truth", fields["truth"], "GnBu", (0, 1)),
        ("Prediction", fields["model"], "GnBu", (0, 1)),
        ("Error", error, "RdBu_r", (-most, most)),
    )
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.02, right=0.96, top=0.79, bottom=0.03, wspace=0.12)
    for axis, (name, field, colours, limits) in zip(axes, panels, strict=True):
        image = _draw_sphere(axis, mesh, view, field, colours, limits)
        _draw_path(axis, view, flow)
        axis.set_title(name, fontsize=11.5)
        bar = figure.colorbar(image, ax=axis, shrink=0.62, pad=0.02, aspect=18)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=9)
    figure.text(
        0.03,
        0.955,
        f"A bell carried around the sphere: after 12 steps ({12 * HOURS:g} hours)",
        fontsize=13.5,
        weight="bold",
        va="center",
    )
    figure.text(
        0.03,
        0.895,
        f"l2 error: model {at['l2_model']:.2f}, first-order upwind "
        f"{at['l2_upwind']:.2f}, persistence {at['l2_persistence']:.2f}; "
        f"mesh level {skill['level']}, axis not trained on. Dotted: the bell's way.",
        color="#52616d",
        va="center",
    )


def _view(direction: np.ndarray) -> np.ndarray:
    """[3, 3] rows right, up and towards us, for a look at `direction`."""
    towards = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 0.0, 1.0], towards)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


def _draw_sphere(axis, mesh, view, field, colours, limits):
    """The half of the sphere that faces us, in parallel projection."""
    x, y, depth = view @ mesh.points.T
    faces = mesh.faces[-1]
    front = faces[(depth[faces] > 0).all(axis=1)]
    image = axis.tripcolor(
        Triangulation(x, y, front),
        field,
        shading="gouraud",
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        rasterized=True,
    )
    axis.triplot(Triangulation(x, y, front), color=INK, lw=0.25, alpha=0.16)
    turn = np.linspace(0, 2 * np.pi, 361)
    axis.plot(np.cos(turn), np.sin(turn), color=FAINT, lw=1.0)
    axis.set_aspect("equal")
    axis.set_xlim(-1.03, 1.03)
    axis.set_ylim(-1.03, 1.03)
    axis.axis("off")
    return image


def _draw_path(axis, view, flow) -> None:
    """Where the bell's centre goes in 12 steps."""
    hours = np.linspace(0, 12 * HOURS, 40)
    way = np.vstack([flow.back(adv.BELL_CENTRE[None], -h) for h in hours])
    x, y, _ = view @ way.T
    axis.plot(x, y, ":", color=INK, lw=1.3)
    axis.plot(x[0], y[0], "o", color="white", mec=INK, ms=4.5)


# ----------------------------------------------------------------------------- memory


def _draw_memory(figure, found: dict) -> None:
    rows, settings = found["rows"], found["settings"]
    axis = figure.subplots()
    figure.subplots_adjust(left=0.075, right=0.83, top=0.83, bottom=0.115)
    ends, on_device = [], settings["device"] != "cpu"
    for name, row in rows.items():
        if row["seconds_per_step"] is None:  # the control row has no timed step
            continue
        time, held = _last_step(row, found["samples"][name], on_device)
        colour = COLOURS[name]
        wide = name in ("plain", "offload", "offload 1/2")
        axis.plot(time, held, color=colour, lw=2.4 if wide else 1.6, zorder=3)
        ends.append([row["peak_resident_bytes"] / MIB, name, colour, row])
    offload = first_offload(rows)
    time, held = _engine(offload)
    axis.plot(time, held, ":", color=COLOURS["offload"], lw=1.8, zorder=3)
    budget = offload["budget"] / MIB
    axis.axhline(budget, color=COLOURS["offload"], lw=1.1, ls="--", zorder=2)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    _label_peaks(axis, ends)
    axis.annotate(
        "budget",
        (axis.get_xlim()[1], budget),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color=COLOURS["offload"],
        fontsize=9.5,
    )
    axis.set_xlabel("seconds since the step began")
    axis.set_ylabel("MiB on the device" if on_device else "MiB above the imports")
    axis.grid(axis="y", color="#e6eaee", lw=0.8)
    axis.tick_params(length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    lower = offload["peak_resident_bytes"] / rows["plain"]["peak_resident_bytes"]
    slower = offload["seconds_per_step"] / rows["plain"]["seconds_per_step"]
    figure.text(
        0.03,
        0.95,
        f"One training step: {lower:.2f}x the memory at {slower:.2f}x the time, "
        + ("same gradient bits" if offload["same_bits"] else "DIFFERENT GRADIENTS"),
        fontsize=13.5,
        weight="bold",
        va="center",
    )
    figure.text(
        0.03,
        0.89,
        f"Mesh level {settings['level']}, width {settings['width']}, "
        f"{settings['layers']} layers. Lines: {LINES[on_device]}. Dotted: saved bytes, "
        "counted by the engine.",
        color="#52616d",
        va="center",
    )


def _last_step(row: dict, samples: list, on_device: bool):
    """Seconds and MiB, above a process's baseline, during the last timed step."""
    begin, end = row["windows"][-1]
    kept = np.array([s[:2] for s in samples if begin <= s[0] <= end]).reshape(-1, 2)
    baseline = 0 if on_device else row["baseline_bytes"]
    return kept[:, 0] - begin, (kept[:, 1] - baseline) / MIB


def _engine(row: dict) -> tuple[np.ndarray, np.ndarray]:
    begin, end = row["windows"][-1]
    kept = np.array([p for p in row["trace"] if begin <= p[0] <= end]).reshape(-1, 2)
    return kept[:, 0] - begin, kept[:, 1] / MIB


def _label_peaks(axis, ends: list) -> None:
    """Names and peaks to the right, at the height of the peak, pushed apart."""
    gap = 0.105 * axis.get_ylim()[1]
    ends.sort(key=lambda end: end[0])
    height = -np.inf
    for peak, name, colour, row in ends:
        height = max(peak, height + gap)
        axis.annotate(
            f"{name}\n{peak:,.0f} MiB, {row['seconds_per_step']:.1f} s",
            (1.012, height),
            xycoords=("axes fraction", "data"),
            color=colour,
            fontsize=9.5,
            va="center",
            linespacing=1.15,
            annotation_clip=False,
        )
