"""A progress bar over jobs of known weight: rich's, or a plain one, or lines."""

import contextlib
import importlib.util
import sys


class Progress:
    """`update(name, share)` within a job, `finish(weight, text)` at its end."""

    def __init__(self, total: float, draw=None):
        self.total, self.done, self._draw = total, 0.0, draw

    def update(self, name: str, weight: float, share: float) -> None:
        if self._draw:
            self._draw(name, (self.done + weight * share) / self.total)

    def finish(self, name: str, weight: float, text: str) -> None:
        self.done += weight
        if self._draw:
            self._draw(name, self.done / self.total)
        else:
            print(f"[{100 * self.done / self.total:3.0f} %] {name}: {text}", flush=True)


@contextlib.contextmanager
def progress(total: float):
    """A bar on a terminal; one line for each job elsewhere."""
    if not sys.stdout.isatty():
        yield Progress(total)
    elif importlib.util.find_spec("rich"):
        import rich.progress as rich

        columns = (
            rich.TextColumn("{task.description:<18}"),
            rich.BarColumn(None),
            rich.TaskProgressColumn(),
            rich.TimeElapsedColumn(),
        )
        with rich.Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=1.0)

            def draw(name, share):
                bar.update(task, description=name, completed=share)

            yield Progress(total, draw)
    else:
        yield Progress(total, _draw_plain)
        print("\r\x1b[K", end="", flush=True)


def _draw_plain(name: str, share: float) -> None:
    filled = round(30 * share)
    bar = "#" * filled + "." * (30 - filled)
    print(f"\r\x1b[K{name:<26} [{bar}] {100 * share:3.0f} %", end="", flush=True)
