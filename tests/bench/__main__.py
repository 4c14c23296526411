"""`python -m tests.bench`: every workload on every side, in one table each."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from typing import Annotated, Any

import tyro
from rich.console import Console

from . import report, scaling
from .compare import Disagreement
from .measure import Machine, measure
from .workers import WorkerError, find_torch, jax_worker, torch_worker
from .workloads import WORKLOADS, smoke


@dataclasses.dataclass(frozen=True)
class Options:
    """Benchmarks of metakit against PyTorch and plain JAX, in alternation."""

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(help="which; all by default")] = tuple(WORKLOADS)
    sides: tuple[str, ...] = ()
    """Only sides whose name contains one of these words; all by default."""
    repeat: int = 7
    """Rounds; a time is the median over them."""
    seconds: float = 0.4
    """How long a side is timed in each round."""
    smoke: bool = False
    """Tiny sizes: does everything still run and agree?"""
    check: bool = True
    """Compare the sides' losses and gradients."""
    time: bool = True
    """Time the sides."""
    peer_python: str | None = None
    """A Python that can import torch; by default this one, if it can."""
    devices: int = 2
    """Host devices that a CPU is made to show; its cores are spread over them."""
    out: pathlib.Path | None = None
    """A folder for bench.json and bench.md; what an earlier run wrote there and this one does not measure, stays."""
    pictures: bool = False
    """Draw the scaling curves too, as `python -m tests.bench.scaling` does."""


def _machine(options: Options) -> Machine:
    peer = find_torch(options.peer_python)
    with jax_worker("metakit") as worker:
        hello = worker.ask("hello")
    if peer is not None:
        with torch_worker(peer, "loop") as worker:
            hello |= {"torch": worker.ask("hello")["torch"]}
    return Machine(hello | {"cores": len(os.sched_getaffinity(0))}, peer, options.devices)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was measured now, and what was measured before of the same workload at the same size."""
    same = old.get("workload") == new["workload"]
    kept = {part: old[part] for part in ("differences", "times") if same and part in old and part not in new}
    return new | kept | ({"sides": old["sides"] | new["sides"]} if kept else {})


def _progress(console: Console, status: Any, text: str) -> None:
    status.update(text)
    if not console.is_terminal:  # where a status line is not shown
        Console(stderr=True).print(text, highlight=False, markup=False)


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measure, and return the record."""
    unknown = sorted(set(options.workloads) - set(WORKLOADS))
    if unknown:
        raise ValueError(f"--workloads {' '.join(unknown)} is not known; there are {', '.join(WORKLOADS)}.")
    machine = _machine(options)
    file = None if options.out is None else options.out / "bench.json"
    before = json.loads(file.read_text()) if file is not None and file.exists() else {}
    kept = before.get("workloads", {}) if before.get("smoke") == options.smoke else {}
    record: dict[str, Any] = {"machine": machine.hello, "smoke": options.smoke, "workloads": dict(kept)}
    with tempfile.TemporaryDirectory() as scratch, console.status("") as status:
        for name in options.workloads:
            workload = smoke(WORKLOADS[name]) if options.smoke else WORKLOADS[name]
            folder = pathlib.Path(scratch) / name
            folder.mkdir()
            new = measure(
                workload,
                machine,
                folder,
                lambda text, name=name: _progress(console, status, f"{name}: {text}"),
                repeat=options.repeat,
                seconds=options.seconds,
                checked=options.check,
                timed=options.time,
                only=options.sides,
            )
            record["workloads"][name] = _merge(kept.get(name, {}), new)
    record["workloads"] = {name: record["workloads"][name] for name in WORKLOADS if name in record["workloads"]}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n")
        file.with_suffix(".md").write_text(report.markdown(record))
    return record


def main() -> int:
    options = tyro.cli(Options, prog="python -m tests.bench")
    console = Console()
    try:
        record = run(options, console)
    except (Disagreement, ValueError, WorkerError) as error:
        Console(stderr=True).print(f"bench: {error}", markup=False)
        return 1
    report.show(record, console)
    if options.pictures:
        scaling.run(scaling.Options(smoke=options.smoke), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
