"""The worker's end: answer one JSON line on standard output to each JSON line on standard input.

Standard library only, since the PyTorch worker imports it too.
"""

import json
import os
import pathlib
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def serve(handlers: dict[str, Callable[..., Any]]) -> None:
    """Answer `{"ask": name, ...}` with `handlers[name](...)` until the input ends.

    An idle worker blocks in a read, so it costs the others nothing.
    """
    # Libraries print; answers must not mix with that.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": handlers[request.pop("ask")](**request)}
        except Exception:  # noqa: BLE001 - whatever it was, the other process reports it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def timed_calls(call: Callable[[], int], *, seconds: float, most: int, warm: bool = True) -> list[float]:
    """Milliseconds per step of calls that return how many steps they took.

    `warm`: one call first that does not count, because while the worker was idle the others had the caches.
    """
    if warm:
        call()
    times: list[float] = []
    start = time.perf_counter()
    while not times or (len(times) < most and time.perf_counter() - start < seconds):
        before = time.perf_counter()
        steps = call()
        times.append((time.perf_counter() - before) / steps * 1e3)
    return times


def peak_bytes() -> int:
    """The most memory that this process has held.

    Linux counts the parent's memory in `ru_maxrss` of a process started by vfork; `VmHWM` starts anew with the program.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
