"""`python -m tests.bench.operations`: where the time of a metakit step goes, by kind of compiled operation.

Recording costs time of its own where operations are small (8 times for W1), so the shares are what to read.
"""

import collections
import dataclasses
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from .jax_worker import Answers
from .workloads import WORKLOADS, smoke, write


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the time of a step goes."""

    workloads: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help="which")] = (
        "sinusoid",
        "omniglot_paper",
    )
    devices: int = 1
    """Host devices that a CPU is made to show."""
    smoke: bool = False
    """Tiny sizes."""
    rows: int = 12
    """Kinds shown, those that take longest first."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """Milliseconds a step, and how often an operation ran in it, by kind; and the step's own milliseconds."""

    step: float
    milliseconds: dict[str, float]
    count: dict[str, float]


def kind(operation: str) -> str:
    """What an operation is, of a name like `add_select_fusion.12`; XLA's library of products on a CPU is `ynn`."""
    return re.sub(r"[._]\d+$", "", operation)


def profile(call: Callable[[], int]) -> Profile:
    """Of a function that takes some steps, waits for them and returns their number; first called for compilation."""
    call()
    start = time.perf_counter()
    steps = call()
    step = (time.perf_counter() - start) / steps * 1e3
    nanoseconds: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps = call()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data: Any = jax.profiler.ProfileData.from_file(str(file))
        events = [event for plane in data.planes for line in plane.lines for event in line.events]
        for event in events:
            operation = dict(event.stats).get("hlo_op")
            # A loop is the sum of what runs in it.
            if operation is not None and kind(operation) not in {"while", "call", "conditional"}:
                nanoseconds[kind(operation)] += event.duration_ns
                times[kind(operation)] += 1
    milliseconds = {name: total / steps / 1e6 for name, total in nanoseconds.most_common()}
    return Profile(step, milliseconds, {name: times[name] / steps for name in milliseconds})


def of_workload(name: str, options: Options) -> Profile:
    """Of a workload of the benchmarks."""
    workload = smoke(WORKLOADS[name]) if options.smoke else WORKLOADS[name]
    answers = Answers("metakit", options.devices)
    with tempfile.TemporaryDirectory() as folder:
        write(workload, pathlib.Path(folder) / "workload.npz")
        answers.load(str(pathlib.Path(folder) / "workload.npz"))
    return profile(answers.side.many)


def table(name: str, found: Profile, rows: int) -> Table:
    """The kinds that take longest, and the rest as one row."""
    total = sum(found.milliseconds.values())
    shown = Table("operation", "share", "ms a step", "times a step", title=f"{name}: {found.step:.3g} ms a step")
    largest = list(found.milliseconds)[:rows]
    for one in largest:
        own = found.milliseconds[one]
        shown.add_row(one, f"{own / total:.1%}", f"{own:.3g}", f"{found.count[one]:.0f}")
    rest = total - sum(found.milliseconds[one] for one in largest)
    count = sum(found.count.values()) - sum(found.count[one] for one in largest)
    shown.add_row("all others", f"{rest / total:.1%}", f"{rest:.3g}", f"{count:.0f}")
    return shown


def main() -> int:
    options = tyro.cli(Options, prog="python -m tests.bench.operations")
    console = Console()
    unknown = sorted(set(options.workloads) - set(WORKLOADS))
    if unknown:
        Console(stderr=True).print(f"operations: {' '.join(unknown)} is not known; there are {', '.join(WORKLOADS)}.")
        return 1
    jax.config.update("jax_num_cpu_devices", options.devices)
    for name in options.workloads:
        console.print(table(name, of_workload(name, options), options.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
