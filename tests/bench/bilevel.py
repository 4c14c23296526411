"""`python -m tests.bench.bilevel`: what the adjoints keep and take, and a PyTorch loop beside them.

- `exact`: the largest relative errors, in float64, against each other, differences and closed forms.
- `growth`: scratch memory of the compiled hypergradient (by XLA's own account) and time against inner steps; drawn.
- `speed`: time and memory of the exact adjoints at 64 and 256 steps, in turns.
- `peers`: against `torch.autograd.grad(..., create_graph=True)` in a loop, in turns, after comparing the gradients.
"""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from . import pictures
from .bilevel_exact import exact
from .workers import ROOT, Worker, bilevel_worker, find_torch

STEPS = (5, 20, 100, 500, 2000, 5000)
# Beyond these `growth` only compiles; what takes longer than LONG_MS is timed once.
MOST_TIMED, MOST_BYTES, LONG_MS = 500, 8 * 2**30, 4000
DRAWN = (
    "Unrolled",
    "MixedMode",
    "Checkpointed",
    "MixedMode, checkpointed",
    "Truncated(20)",
    "Reversible",
    "Forward",
    "Implicit",
)
EXACT = ("Unrolled", "Checkpointed", "MixedMode", "MixedMode, checkpointed")
PEER = "PyTorch, create_graph=True"
# Both sides round each of some thousand operations by 1e-16; a term left out is 1e-3 and more.
TOLERANCE = 1e-9

TITLE = "Hypergradient of a weight decay; momentum, MLP 64-256-256-256-1, batch 512"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """Figures of bilevel problems."""

    parts: tuple[str, ...] = ("exact", "growth", "speed", "peers")
    """Which."""
    peer_python: str | None = None
    """A Python that can import torch; by default this one, if it can."""
    speed_steps: tuple[int, ...] = (64, 256)
    """Inner steps of `speed`."""
    peers_steps: tuple[int, ...] = (5, 50, 200)
    """Inner steps of `peers`."""
    repeat: int = 5
    """Rounds; a time is the median over them."""
    pictures: pathlib.Path = ROOT / "docs" / "images"
    """A folder for the picture, bilevel-growth.png."""
    out: pathlib.Path | None = None
    """A folder for bilevel.json; what an earlier run wrote there and this one does not measure, stays."""
    smoke: bool = False
    """Tiny sizes."""


def growth(options: Options, say: Say) -> list[dict[str, Any]]:
    """Bytes and milliseconds for each adjoint and number of steps."""
    adjoints = DRAWN[1:3] if options.smoke else DRAWN
    found: list[dict[str, Any]] = []
    # Reversible needs integers of 64 bits; the network is in float32 all the same.
    with bilevel_worker("jax", x64=True) as worker:

        def load(point: dict[str, Any]) -> None:
            worker.ask("load", adjoint=point["line"], small=options.smoke, num_steps=point["x"], by_decay=True)

        for adjoint in adjoints:
            for steps in (4, 64) if options.smoke else STEPS:
                say(f"compiling {adjoint}, {steps} steps")
                point: dict[str, Any] = {"line": adjoint, "x": steps, "rounds": []}
                load(point)
                found.append(point | {"bytes": worker.ask("temporary")})
        timed = [point for point in found if point["x"] <= MOST_TIMED and point["bytes"] <= MOST_BYTES]
        for turn in range(options.repeat):
            for point in timed:
                if all(ms < LONG_MS for ms in point["rounds"]):
                    say(f"round {turn + 1}, {point['line']}, {point['x']} steps")
                    load(point)
                    point["rounds"].append(min(worker.ask("time", seconds=0.05, most=3)))
    for point in timed:
        point["ms"] = statistics.median(point["rounds"])
    return found


def in_turns(sides: dict[str, Worker], options: Options, say: Say) -> dict[str, dict[str, Any]]:
    """What each side needs, and milliseconds by the median of rounds that every side takes in turn."""
    found = {}
    for name, worker in sides.items():
        say(f"memory of {name}")
        found[name] = worker.ask("memory") | {"rounds": []}
    for turn in range(options.repeat):
        for name, worker in sides.items():
            say(f"round {turn + 1}, {name}")
            found[name]["rounds"].append(min(worker.ask("time", seconds=0.2, most=5)))
    for facts in found.values():
        facts["ms"] = statistics.median(facts["rounds"])
    return found


def speed(options: Options, say: Say) -> list[dict[str, Any]]:
    """The exact adjoints against each other."""
    found = []
    for steps in (4, 8) if options.smoke else options.speed_steps:
        with contextlib.ExitStack() as stack:
            sides = {name: stack.enter_context(bilevel_worker("jax")) for name in EXACT}
            for name, worker in sides.items():
                worker.ask("load", adjoint=name, small=options.smoke, num_steps=steps)
            measured = in_turns(sides, options, say)
        found += [{"line": name, "x": steps} | facts for name, facts in measured.items()]
    return found


def disagreement(python: str, steps: int, small: bool) -> float:
    """The largest relative difference of a leaf of the gradient, in float64."""
    with tempfile.TemporaryDirectory() as folder:
        values = []
        for kind in ("jax", "torch"):
            into = str(pathlib.Path(folder) / f"{kind}.npz")
            with bilevel_worker(kind, python=python if kind == "torch" else None, x64=True) as worker:
                extra = {"adjoint": "auto"} if kind == "jax" else {}
                worker.ask("load", small=small, num_steps=steps, dtype="float64", **extra)
                worker.ask("check", into=into)
            with np.load(into) as file:
                values.append([file[name] for name in file.files])
    pairs = zip(values[0], values[1], strict=True)
    return float(np.max([np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0) for a, b in pairs]))


def peers(options: Options, say: Say) -> list[dict[str, Any]]:
    """The adjoint that "auto" chooses against PyTorch's loop."""
    python = find_torch(options.peer_python)
    if python is None:
        return []
    found = []
    for steps in (2, 4) if options.smoke else options.peers_steps:
        say(f"comparing gradients after {steps} steps in float64")
        worst = disagreement(python, steps, options.smoke)
        if not worst <= TOLERANCE:
            raise AssertionError(f"the sides' gradients differ by {worst:.1e}, more than {TOLERANCE:g}")
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(bilevel_worker("jax"))
            ours.ask("load", adjoint="auto", small=options.smoke, num_steps=steps)
            theirs = stack.enter_context(bilevel_worker("torch", python=python))
            theirs.ask("load", small=options.smoke, num_steps=steps, dtype="float32")
            measured = in_turns({'metakit, "auto"': ours, PEER: theirs}, options, say)
        found += [{"line": name, "x": steps, "difference": worst} | facts for name, facts in measured.items()]
    return found


def table(points: list[dict[str, Any]], title: str) -> Table:
    """A row for each point."""
    shown = Table("steps", "", "ms", "scratch, MiB", "process grew by, MiB", title=title, title_justify="left")
    for point in points:
        scratch = point.get("bytes", point.get("temporary"))
        grown = f"{(point['peak'] - point['before']) / 2**20:,.0f}" if "peak" in point else ""
        shown.add_row(
            str(point["x"]),
            point["line"],
            f"{point['ms']:,.3g}" if "ms" in point else "",
            "" if scratch is None else f"{scratch / 2**20:,.1f}",
            grown,
        )
    return shown


PARTS = {"growth": growth, "speed": speed, "peers": peers}


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measure and draw; returns what was measured."""
    file = None if options.out is None else options.out / "bilevel.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}
    with console.status("") as status:
        for part in options.parts:
            say = status.update
            if part == "exact":
                record[part] = exact(options.smoke, say)
                console.print_json(data=record[part])
            else:
                new = PARTS[part](options, say)
                console.print(table(new, part))
                measured = {point["x"] for point in new}
                record[part] = [point for point in record.get(part, []) if point["x"] not in measured] + new
    if "growth" in options.parts:
        options.pictures.mkdir(parents=True, exist_ok=True)
        drawn = {"title": TITLE, "axis": "inner steps", "points": record["growth"]}
        pictures.curve(drawn, options.pictures / "bilevel-growth.png")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    run(tyro.cli(Options, prog="python -m tests.bench.bilevel"), Console())
    sys.exit(0)
