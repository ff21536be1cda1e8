"""A report of the simulated machine as one SVG: streams over virtual time.

One row per stream, one for the bytes that the races are about,
arrows from each recorded event to the stream that waits for it.
"""

import html

WIDTH, LEFT, RIGHT = 640, 92, 12
ROW, BAR, TOP = 58, 30, 30
COLOURS = {"kernel": "kernel", "copy_out": "out", "copy_in": "in"}
ORDER = ["compute", "copy out", "copy in"]


def draw(report, horizon, block):
    """`horizon`: the last nanosecond shown; `block`: name of the row of bytes."""
    ops = report["ops"]
    bars = [op for op in ops if op["kind"] in COLOURS]
    rows = [name for name in ORDER if any(op["stream"] == name for op in bars)]
    lo, hi = contested(report, bars)
    bad = {
        v[who]["site_id"] for v in report["violations"] for who in ("first", "second")
    }
    canvas = Canvas(horizon, len(rows) + 1)
    canvas.axis()
    for i, name in enumerate([*rows, block]):
        canvas.name(i, name)
    for op in bars:
        canvas.bar(
            rows.index(op["stream"]),
            op,
            title=op["name"] if op["kind"] == "kernel" else op["label"],
        )
    for op in bars:
        for a, b, write in op["accesses"]:
            if a < hi and b > lo:
                text = f"{'write' if write else 'read'}"
                canvas.bar(len(rows), op, text, half=write, bad=op["site"] in bad)
    for op in ops:
        for before in op["after"]:
            if op["kind"] == "wait" and op["stream"] in rows:
                canvas.arrow(ops[before], op, rows)
    for v in report["violations"][:1]:
        canvas.clash(bars, v, len(rows))
    return canvas.svg()


def contested(report, bars):
    """The bytes of the first race; without one, those of the first kernel."""
    for v in report["violations"]:
        return v["lo"], v["hi"]
    return bars[0]["accesses"][0][:2]


class Canvas:
    def __init__(self, horizon, rows):
        self.horizon, self.rows = horizon, rows
        self.height = TOP + rows * ROW + 26
        self.parts = []

    def x(self, time):
        return LEFT + (WIDTH - LEFT - RIGHT) * time / self.horizon

    def y(self, row):
        return TOP + row * ROW + (ROW - BAR) / 2

    def add(self, part):
        self.parts.append(part)

    def text(self, x, y, text, size=11, fill="var(--soft)", anchor="start"):
        self.add(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" '
            f'text-anchor="{anchor}">{html.escape(text)}</text>'
        )

    def axis(self):
        step = next(s for s in (10, 20, 50, 100, 200, 500) if self.horizon < s * 8000)
        for us in range(0, int(self.horizon / 1000) + 1, step):
            x = self.x(us * 1000)
            self.add(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" '
                f'y2="{self.height - 26}" stroke="var(--line)"/>'
            )
            self.text(x, self.height - 10, f"{us} µs", anchor="middle")

    def name(self, row, name):
        words, lines = name.split(), [""]
        for word in words:
            fits = len(lines[-1]) + len(word) < 14
            lines[-1:] = [f"{lines[-1]} {word}".strip()] if fits else [lines[-1], word]
        y = self.y(row) + BAR / 2 + 4 - 7 * (len(lines) - 1)
        for i, line in enumerate(lines):
            self.text(4, y + 14 * i, line, 12, "var(--ink)")

    def bar(self, row, op, title, half=None, bad=False):
        """half: None the whole height, else the upper (reads) or lower (writes)."""
        x, y, height = self.x(op["begun"]), self.y(row), BAR
        if half is not None:
            height = BAR / 2 + 3
            y += height * (1 if half else 0) - 3
        width = max(2.0, self.x(op["ended"]) - x)
        colour = "bad" if bad else COLOURS[op["kind"]]
        about = f"{op['name']} {op['label']}: {op['begun'] / 1e3:.0f} to "
        about += f"{op['ended'] / 1e3:.0f} µs"
        self.add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="2.5" fill="var(--{colour})"><title>{html.escape(about)}</title>'
            "</rect>"
        )
        for text in (title, title.replace("gradient", "grad")):
            if len(text) * 5.1 < width + 1:
                self.text(x + width / 2, y + height / 2 + 4, text, 10, "#fff", "middle")
                break

    def arrow(self, record, wait, rows):
        if record["stream"] not in rows or record["stream"] == wait["stream"]:
            return
        a, b = rows.index(record["stream"]), rows.index(wait["stream"])
        x, to = self.x(record["ended"]), self.x(wait["ended"])
        y = self.y(a) + (BAR if a < b else 0)
        end = self.y(b) + (0 if a < b else BAR)
        tip = end - 4 if a < b else end + 4
        bend = (tip - y) * 0.6
        self.add(
            f'<path d="M{x:.1f},{y:.1f} C{x:.1f},{y + bend:.1f} {to:.1f},'
            f'{tip - bend:.1f} {to:.1f},{tip:.1f}" fill="none" stroke="var(--soft)" '
            'stroke-width="1.3" stroke-dasharray="2 3" marker-end="url(#tip)"/>'
        )

    def clash(self, bars, violation, row):
        """The first race: the time during which both are at the same bytes."""
        pairs = [
            (a, b)
            for b in bars
            for a in bars
            if a["id"] < b["id"]
            and a["site"] == violation["first"]["site_id"]
            and b["site"] == violation["second"]["site_id"]
        ]
        if not pairs:
            return
        a, b = pairs[0]
        lo = max(a["begun"], b["begun"])
        x, end = self.x(lo), self.x(min(a["ended"], b["ended"]))
        if end <= x:
            return
        self.add(
            f'<rect x="{x:.1f}" y="{TOP - 8}" width="{end - x:.1f}" '
            f'height="{self.y(row) + BAR - TOP + 14:.1f}" fill="var(--bad)" '
            'fill-opacity=".10" stroke="var(--bad)" stroke-dasharray="4 3" rx="3"/>'
        )
        self.text(x + 2, TOP - 14, "both at the same bytes", 12, "var(--bad)")

    def svg(self):
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" '
            'fill="var(--soft)"/></marker></defs>'
        )
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img">{tip}'
            + "".join(self.parts)
            + "</svg>"
        )
