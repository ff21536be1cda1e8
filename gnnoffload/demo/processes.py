"""Runs a job in a process of its own and watches that process's memory from outside."""

import json
import os
import subprocess
import sys
import threading
import time

SAMPLE_SECONDS = 0.02


class JobError(RuntimeError):
    """A job's process failed; the text is the last of what it said."""


def run(module: str, arguments: list[str], on_progress) -> tuple[dict | None, list]:
    """Runs `python -m module arguments` to its end.

    Args:
        on_progress: called with the share done, from each `progress <share>` line.

    Returns:
        The object of its `result <json>` line (None without one), and samples
        [(monotonic seconds, resident bytes, private bytes)].

    Raises:
        JobError: it failed, with the last lines of its standard error.
    """
    # Spinning OpenMP threads would take the cores from the copies.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    samples, errors = [], []
    watcher = threading.Thread(target=_watch, args=(process, samples), daemon=True)
    reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
    watcher.start()
    reader.start()
    result = None
    try:
        for line in process.stdout:
            kind, _, rest = line.partition(" ")
            if kind == "progress":
                on_progress(float(rest))
            elif kind == "result":
                result = json.loads(rest)
        process.wait()
    finally:
        if process.poll() is None:  # Ctrl-C here: leave nothing running
            process.kill()
            process.wait()
        watcher.join()
        reader.join()
    if process.returncode != 0:
        tail = "".join(errors[-8:]).strip() or f"exit status {process.returncode}"
        raise JobError(f"{module}: {tail}")
    return result, samples


def _watch(process: subprocess.Popen, samples: list) -> None:
    """Notes what is resident, and what RLIMIT_DATA counts, until the process ends."""
    page = os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/statm") as file:
                pages = [int(word) for word in file.read().split()]
        except (OSError, IndexError):  # it has just ended
            return
        samples.append((time.monotonic(), pages[1] * page, pages[5] * page))
        time.sleep(SAMPLE_SECONDS)
