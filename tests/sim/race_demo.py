"""`make race-demo`: one public bug and our schedule, side by side, in one page.

Both sides are played on the simulated machine: on the left the calls of a public
report, on the right the same three layers through link_cuda itself. The marks in the
page are the checker's findings, and the table below plays the whole corpus.
"""

import argparse
import html
from pathlib import Path

from corpus import PATTERNS
from link_driver import Link
from simulator import MODES, Machine, explain
from timeline import draw

MEGABYTE = 1 << 20
SIZE = 8 * MEGABYTE
LAYER, GRADIENT = 110_000, 90_000  # nanoseconds
LAYERS = 3


def machine():
    return Machine("timed", machine="pcie5", call_cost=1000)


def play_the_bug():
    """pytorch #180665: freed at return, while the copy out still reads."""
    m = machine()
    m.lib.sim_name_stream(0, b"compute")
    out, back = m.stream("copy out"), m.stream("copy in")
    hosts = [m.pinned(SIZE) for _ in range(LAYERS)]
    m.alloc(512)
    for i, host in enumerate(hosts, 1):
        x = m.alloc(SIZE)
        m.kernel(f"layer {i}", writes=[x], cost=LAYER)
        m.join(out, 0)
        m.label(f"x{i} out")
        m.copy_out(host, x, out)
        m.free(x)  # the function returns
    for i, host in reversed(list(enumerate(hosts, 1))):
        y = m.alloc(SIZE)
        m.join(back, 0)
        m.join(back, out)
        m.label(f"x{i} back")
        m.copy_in(y, host, back)
        m.join(0, back)
        m.kernel(f"gradient {i}", reads=[y], cost=GRADIENT)
        m.free(y)
    m.finish()
    return m.report(trace=True)


def play_ours():
    """The same layers through link_cuda: ordered after the copy, then dropped."""
    m = machine()
    m.lib.sim_name_stream(0, b"compute")
    link = Link(m, 4 * LAYERS * SIZE)
    for number, name in ((1, b"copy in"), (2, b"copy out")):
        m.lib.sim_name_stream(0x51000000 + number, name)
    far, leaving = [], []
    for i in range(1, LAYERS + 1):
        x = m.alloc(SIZE)
        m.kernel(f"layer {i}", writes=[x], cost=LAYER)
        m.label(f"x{i} out")
        ready = link.mark(0)
        slot = link.slot_alloc(SIZE)
        leaving.append((x, link.put(slot, x, ready)))
        far.append((i, slot, leaving[-1][1]))
        link.ops.mark_free(link.pointer, ready)
        m.label(f"compute waits for x{i - 1}")
        if len(leaving) > 1:  # the outward window holds one tensor
            drop(m, link, *leaving.pop(0))
    m.label("compute waits for the last copy")
    drop(m, link, *leaving.pop(0))
    coming = []
    for i, slot, put in [*reversed(far), (0, None, None)]:
        if slot:  # the inward window holds one tensor: its copy runs beside a gradient
            m.label(f"x{i} back")
            y = m.alloc(SIZE)
            room = link.mark(0)
            coming.append((i, y, link.get(slot, y, room, put)))
            link.ops.mark_free(link.pointer, room)
            link.call("slot_free", slot)
        if len(coming) > (1 if slot else 0):
            i, y, back = coming.pop(0)
            m.label(f"gradient {i} waits for x{i}")
            link.call("order", back, 0)
            m.kernel(f"gradient {i}", reads=[y], cost=GRADIENT)
            m.free(y)
    m.finish()
    return m.report(trace=True)


def drop(m, link, x, ticket):
    link.call("order", ticket, 0)
    m.free(x)


def marked(text):
    """`code` in a sentence."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def corpus_rows():
    """Each public pattern played in all modes: what the checker said."""
    for p in PATTERNS:
        found, clean = [], []
        for mode in MODES:
            m = Machine(mode, seed=1)
            p.play(m, fixed=False)
            pairs = {
                (v["first"]["site"]["what"], v["second"]["site"]["what"])
                for v in m.violations()
                if v["kind"] == "race"
            }
            found.append(pairs == {p.pair} if p.pair else bool(m.leaks()))
            m = Machine(mode, seed=1)
            p.play(m, fixed=True)
            clean.append(not m.violations() and not (m.leaks() and not p.pair))
        pair = f"{p.pair[0]} and {p.pair[1]}" if p.pair else "buffer and event kept"
        yield p.report, p.story, pair, f"{sum(found)} of 4", f"{sum(clean)} of 4"


STYLE = """
:root { --page: #fbfbf9; --ink: #1d1f23; --soft: #63676f; --line: #d9dad5;
  --kernel: #5b7db1; --out: #d08a3c; --in: #5a9a78; --bad: #c0282d; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --page: #17191d; --ink: #e8e8e4;
  --soft: #9ba0a8; --line: #383b42; --kernel: #6f93c9; --out: #d9984e; --in: #68ad89;
  --bad: #ff6b66; --card: #1e2126; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 Georgia, 'Times New Roman', serif }
main { max-width: 1360px; margin: 0 auto; padding: 40px 28px 60px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; font-weight: 600 }
h2 { font-size: 19px; margin: 0 0 2px; font-weight: 600 }
.lead { color: var(--soft); max-width: 820px; margin: 0 0 26px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(560px, 1fr));
  gap: 22px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 20px; min-width: 0 }
.card p { margin: 6px 0 10px }
.verdict { font: 600 14px/1.4 system-ui, sans-serif }
.bad { color: var(--bad) } .good { color: var(--in) }
svg { width: 100%; height: auto; display: block; margin: 8px 0 4px;
  font-family: system-ui, sans-serif }
pre { font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap;
  border-left: 3px solid var(--bad); padding-left: 12px; margin: 10px 0 0 }
.legend { font: 13px/1.6 system-ui, sans-serif; color: var(--soft);
  margin: 14px 0 30px }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px;
  margin: 0 5px 0 16px; vertical-align: -1px }
table { border-collapse: collapse; width: 100%; font-size: 15px; margin-top: 10px }
th { text-align: left; font: 600 13px system-ui, sans-serif; color: var(--soft) }
td, th { border-bottom: 1px solid var(--line); padding: 8px 12px 8px 0;
  vertical-align: top }
td.n, th.n { white-space: nowrap }
"""


def page():
    bug, ours = play_the_bug(), play_ours()
    races = [v for v in bug["violations"] if v["kind"] == "race"]
    assert races and not ours["violations"]
    horizon = max(op["ended"] for report in (bug, ours) for op in report["ops"])
    rows = "".join(
        "<tr>"
        f'<td class="n">{html.escape(report)}</td><td>{marked(story)}</td>'
        f'<td>{html.escape(pair)}</td><td class="n">{found}</td>'
        f'<td class="n">{clean}</td></tr>'
        for report, story, pair, found, clean in corpus_rows()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A race, and the same layers without
it</title><meta name="viewport" content="width=device-width"><style>{STYLE}</style>
</head><body><main>
<h1>A race, and the same layers without it</h1>
<p class="lead">Three layers each save {SIZE >> 20} MiB for the backward pass, and the
saved tensors leave for host memory. Both sides run on the simulated machine with its
PCIe 5 profile (assumed numbers); time is virtual. What is marked red was found by the
happens-before checker, which looks at the order that the program <em>demands</em>, not
at the moment at which something happened: a clean side is clean for every timing.</p>
<div class="pair">
<section class="card"><h2>pytorch #180665: freed at return</h2>
<p class="verdict bad">{len(races)} pairs of accesses to the same bytes without an
order</p>
{draw(bug, horizon, block="the bytes of x1")}
<p>Each layer's output is copied out on its own stream and dies when the function
returns. The allocator gives its memory to the next layer at once, because on the
compute stream nothing is in the way. But the copy runs on another stream: layer 2
writes the bytes (lowest row) while the copy of x1 still reads them, and what arrives on
the host is a mixture.</p>
<pre>{html.escape(explain(races[0]))}</pre></section>
<section class="card"><h2>gnnoffload's link: ordered, then dropped</h2>
<p class="verdict good">clean: every conflicting pair is ordered</p>
{draw(ours, horizon, block="the bytes of x1")}
<p>A tensor is dropped only after the compute stream has been told to wait for the end
of its copy (dotted arrows into compute). So the same bytes may go to layer 3: its write
comes after the copy's read by the stream's own order, however late the copy is. The
host never waits: a window of one tensor lets a layer run beside the copy of the one
before. On the way back each copy waits until its target is free, each gradient waits
for its copy, and the next copy runs beside the gradient.</p></section>
</div>
<p class="legend"><i style="background:var(--kernel)"></i>kernel<i
style="background:var(--out)"></i>copy out<i style="background:var(--in)"></i>copy in<i
style="background:var(--bad)"></i>access without an order. Arrows: an event and the
stream that waits for it.</p>
<section class="card"><h2>The corpus</h2>
<p>Every public pattern and its repair, played just now in {len(MODES)} modes
({", ".join(MODES)}). The bug must be found in each, whatever the timing was.</p>
<table><tr><th>report</th><th>what happens</th><th>the pair</th><th class="n">found
in</th><th class="n">repair clean in</th></tr>{rows}</table></section>
</main></body></html>
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/race-demo.html"))
    path = parser.parse_args().out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
