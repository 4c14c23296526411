"""One workload: the sides checked against each other, then timed in turns."""

import contextlib
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from . import compare, flops
from .workers import Worker, jax_worker, torch_worker
from .workloads import Workload, write

Say = Callable[[str], None]

# After an answer the threads of OpenMP and Eigen wait for more work, busily, for some milliseconds.
_SETTLE_SECONDS = 0.05
# A side whose step takes longer than this is timed once.
_SLOW_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Side:
    """One row of a table: which process answers, and whether in calls of one step or of many."""

    name: str
    kind: str  # "metakit", "naive", or "torch"
    mode: str = ""  # of PyTorch
    devices: int = 1
    variant: str = "step"
    exact: bool = True  # False where a side is known to compute something else

    @property
    def worker(self) -> str:
        """Rows with the same one share a process."""
        return f"{self.kind} {self.mode or self.devices}"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the sides run on, as a JAX worker says, and the peer's Python, if any."""

    hello: dict[str, Any]
    peer_python: str | None = None
    host_devices: int = 2

    @property
    def devices(self) -> int:
        """How many devices to spread tasks over: as many as a CPU is made to show, or as there are."""
        return self.host_devices if self.hello["platform"] == "cpu" else self.hello["devices"]

    @property
    def torch_device(self) -> str:
        return "cuda" if self.hello["platform"] == "gpu" else "cpu"


def _tasks_in_a_call(workload: Workload) -> int:
    """Testing takes many tasks at a time, training the tasks of its step."""
    return workload.steps_per_call if workload.learner == "meta_test" else workload.tasks


def sides(workload: Workload, machine: Machine) -> list[Side]:
    """The rows of a workload's table; PyTorch's only where there is a torch."""
    fixed_images = workload.network == "conv4" and workload.learner != "meta_test"
    rows = [Side("metakit", "metakit", variant="many")]
    if fixed_images:
        rows.append(Side("metakit, one step a call", "metakit"))
    if machine.devices > 1 and _tasks_in_a_call(workload) % machine.devices == 0:
        host = "host " if machine.hello["platform"] == "cpu" else ""
        name = f"metakit, {machine.devices} {host}devices"
        rows.append(Side(name, "metakit", devices=machine.devices, variant="many"))
    if fixed_images and workload.naive:
        rows.append(Side("JAX, vmap(lax.conv)", "naive"))
    if machine.peer_python is not None:
        if workload.learner == "maml":
            rows.append(Side("PyTorch loop", "torch", "loop"))
            rows.append(Side("PyTorch vmap", "torch", "vmap", exact=workload.network == "mlp"))
            if workload.network == "conv4":
                rows.append(Side("PyTorch vmap, exact norm", "torch", "vmap_exact"))
        elif workload.learner == "prototypical":
            rows += [Side("PyTorch plain", "torch", "plain"), Side("PyTorch channels_last", "torch", "channels_last")]
        else:
            rows.append(Side("PyTorch loop", "torch", "plain"))
    return rows


def _start(side: Side, machine: Machine, path: pathlib.Path, *, checking: bool = False, **options: Any) -> Worker:
    """A worker of a side, with the workload loaded."""
    if side.kind == "torch":
        assert machine.peer_python is not None
        # Answers that are not timed need one core, and OpenMP's threads are the slower the busier the others are.
        worker = torch_worker(machine.peer_python, side.mode, threads=1 if checking else None)
        worker.ask("load", path=str(path), device=machine.torch_device)
    else:
        worker = jax_worker(side.kind, devices=side.devices, **options)
        worker.ask("load", path=str(path))
    return worker


def check(
    rows: list[Side], machine: Machine, folder: pathlib.Path, say: Say, path_of: Callable[[Side], pathlib.Path]
) -> dict[str, Any]:
    """Loss and gradient of every side beside metakit's: the largest relative difference, by precision and side.

    **Arguments:** `path_of`, the workload's file for a side.

    **Raises:** `compare.Disagreement` where two sides differ in float64 by more than rounding.
    """
    different = list({side.worker: side for side in reversed(rows)}.values())[::-1]
    found: dict[str, Any] = {}
    for precision in ("float64", "float32"):
        values = {}
        for side in different:
            say(f"checking {side.name} in {precision}")
            wide = precision == "float64"
            into = folder / f"{side.worker} {precision}.npz"
            with _start(side, machine, path_of(side), checking=True, float64=wide) as worker:
                worker.ask("check", into=str(into), float64=wide)
            values[side] = compare.load(into)
        reference, *others = different
        found[precision] = {}
        for side in others:
            strict = precision == "float64" and side.exact
            compared = compare.require_same if strict else compare.difference
            result = compared(values[reference], values[side], f"{reference.name} and {side.name}")
            found[precision][side.name] = dataclasses.asdict(result)
    return found


def _prepare(
    side: Side, machine: Machine, path: pathlib.Path, folder: pathlib.Path, facts: dict[str, Any], stack: Any
) -> Worker:
    """A warm worker, and what its first call cost."""
    cache = folder / f"compiled {side.worker}" if side.kind == "metakit" else None
    if cache is not None:
        # A process with an empty cache says what compiling costs; another, which finds the program there, what the
        # second run of a command pays, and how much memory the process needs when the compiler's is not counted.
        with _start(side, machine, path, cache=cache) as cold:
            facts["cold"] = cold.ask("first")
            if side.devices == 1:
                facts["temporary_bytes"] = cold.ask("temporary_bytes")
                facts["temporary_bytes_8x_tasks"] = cold.ask("temporary_bytes", times=8)
    worker = stack.enter_context(_start(side, machine, path, **({"cache": cache} if cache else {})))
    facts["hello"] = worker.ask("hello")
    facts["start_bytes"] = worker.ask("peak_bytes")
    facts["cached" if cache else "cold"] = worker.ask("first")
    facts["peak_bytes"] = worker.ask("peak_bytes")
    return worker


def time_in_turns(
    workload: Workload,
    rows: list[Side],
    machine: Machine,
    path: pathlib.Path,
    folder: pathlib.Path,
    say: Say,
    *,
    repeat: int,
    seconds: float,
) -> dict[str, Any]:
    """Milliseconds per step of every row, one median a round, and what the first calls cost."""
    facts: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for row in rows:
            if row.worker not in workers:
                say(f"first call of {row.name}")
                facts[row.worker] = {}
                workers[row.worker] = _prepare(row, machine, path, folder, facts[row.worker], stack)
        rates = []
        ours = [row.worker for row in rows if row.kind != "torch"]
        for turn in range(repeat):
            say(f"round {turn + 1} of {repeat}")
            for row in rows:
                first = facts[row.worker].get("cached", facts[row.worker].get("cold"))
                if first["per_step"] > _SLOW_SECONDS:
                    times[row.name] = [first["per_step"] * 1e3]
                    continue
                answer = workers[row.worker].ask("time", variant=row.variant, seconds=seconds, most=50)
                times[row.name].append(statistics.median(answer))
                time.sleep(_SETTLE_SECONDS)
            # In the same minute as the rest: what is reached is a fraction of what the machine could do then.
            if ours:
                size = 2048 if machine.hello["platform"] == "cpu" else 8192
                rates.append(workers[ours[0]].ask("matmul_rate", size=size, repeat=3))
    reached = {"matmul_flop_per_second": statistics.median(rates)} if rates else {}
    return {"milliseconds": times, "workers": facts} | reached


def measure(
    workload: Workload,
    machine: Machine,
    folder: pathlib.Path,
    say: Say,
    *,
    repeat: int = 7,
    seconds: float = 0.4,
    checked: bool = True,
    timed: bool = True,
    only: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Everything about one workload, as JSON values."""
    path = folder / f"{workload.name}.npz"
    write(workload, path)
    known = sides(workload, machine)
    rows = [row for row in known if not only or any(word in row.name for word in only)]
    if not rows:
        raise ValueError(f"--sides {' '.join(only)} names none of {workload.name}: {', '.join(x.name for x in known)}.")
    record: dict[str, Any] = {
        "workload": dataclasses.asdict(workload),
        "flop": flops.step(workload),
        "sides": {row.name: dataclasses.asdict(row) | {"worker": row.worker} for row in rows},
        "hello": machine.hello,
    }
    if checked:
        record["differences"] = check(rows, machine, folder, say, lambda side: path)
    if timed:
        record["times"] = time_in_turns(workload, rows, machine, path, folder, say, repeat=repeat, seconds=seconds)
    return record
