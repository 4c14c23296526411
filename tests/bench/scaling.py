"""`python -m tests.bench.scaling`: how time and memory of a meta-gradient grow, drawn into `docs/images/`.

Against tasks per batch, inner steps (with every way of differentiating them), way and image size. Memory is XLA's own
account of a compiled program's scratch space; times are medians of rounds over all points of a picture in turns.
"""

import dataclasses
import inspect
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import metakit as mk

from . import pictures
from .metakit_side import MetakitSide
from .serving import timed_calls
from .workers import ROOT
from .workloads import SEED, WORKLOADS, Workload, data, smoke, weights

# A program that wants more is only compiled.
_MOST_BYTES = 4 * 2**30
_ROUNDS = 3
# One that takes longer than this is timed once.
_LONG_MS = 4000


@dataclasses.dataclass(frozen=True)
class Options:
    """Scaling curves of metakit."""

    curves: tuple[str, ...] = ("tasks", "steps", "way", "image")
    """Which."""
    pictures: pathlib.Path = ROOT / "docs" / "images"
    """A folder for the pictures, scaling-*.png."""
    out: pathlib.Path | None = None
    """A folder for scaling.json."""
    smoke: bool = False
    """Tiny sizes."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One program to compile and to run."""

    line: str
    x: int
    workload: Workload
    adjoint: Any = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """One picture: points of several lines over one axis."""

    name: str
    title: str
    axis: str
    points: tuple[Point, ...]


# What cannot serve MAML on images: a choice among the others; a column for every number of the initialisation; no
# gradient for it; a solver that can be undone. `tests.bench.bilevel` draws them all on a problem that they share.
_ELSEWHERE = ("Auto", "Forward", "Implicit", "Truncated", "Reversible")


def adjoints() -> Iterator[tuple[str, Any]]:
    """Every way of differentiating an inner loop that `mk.inner` has and MAML on images can use."""
    for name, kind in sorted(vars(mk.inner).items()):
        is_adjoint = inspect.isclass(kind) and issubclass(kind, mk.inner.AbstractAdjoint)
        if is_adjoint and not inspect.isabstract(kind) and name not in _ELSEWHERE:
            yield name, kind()


def _tasks(size: Callable[[Workload], Workload]) -> Curve:
    points = [
        Point(name, count, dataclasses.replace(size(WORKLOADS[name]), tasks=count))
        for name in ("omniglot_paper", "conv4_heavy")
        for count in (1, 4, 16, 64)
    ]
    return Curve("tasks", "MAML, one step", "tasks per batch", tuple(points))


def _steps(size: Callable[[Workload], Workload]) -> Curve:
    base = dataclasses.replace(size(WORKLOADS["mini84"]), tasks=1)
    points = [
        Point(name, steps, dataclasses.replace(base, inner_steps=steps), adjoint)
        for name, adjoint in adjoints()
        for steps in (5, 10, 20, 40, 80)
    ]
    return Curve("steps", "MAML, Conv4-32, 84x84, one task", "inner steps", tuple(points))


def _way(size: Callable[[Workload], Workload]) -> Curve:
    few = {"tasks": 1, "queries": 5}
    lines = {
        "MAML, 1 inner step": dataclasses.replace(size(WORKLOADS["conv4_heavy"]), **few),
        "Prototypical": dataclasses.replace(size(WORKLOADS["proto60"]), **few),
    }
    points = [
        Point(line, way, dataclasses.replace(workload, way=way))
        for line, workload in lines.items()
        for way in (5, 10, 20, 40, 60)
    ]
    return Curve("way", "Conv4-64, 28x28, 1 shot, 5 queries, one task", "way (classes in a task)", tuple(points))


def _image(size: Callable[[Workload], Workload]) -> Curve:
    base = dataclasses.replace(size(WORKLOADS["mini84"]), tasks=1, inner_steps=1)
    points = [
        Point("MAML, 1 inner step", side, dataclasses.replace(base, image_size=side))
        for side in (28, 42, 56, 84, 112, 168)
    ]
    return Curve("image", "Conv4-32, 5-way 1-shot, 15 queries, one task", "image size (pixels a side)", tuple(points))


CURVES = {"tasks": _tasks, "steps": _steps, "way": _way, "image": _image}


def _compiled(point: Point) -> tuple[Callable[[], int], int]:
    """A call of the meta-gradient's program, and its scratch memory."""
    rng = np.random.default_rng(SEED)
    side = MetakitSide(point.workload, weights(point.workload, rng), data(point.workload, rng), 1)
    gradient, arguments = side.gradient(point.adjoint)
    program = gradient.lower(*arguments).compile()

    def call() -> int:
        jax.block_until_ready(program(*arguments).loss)
        return 1

    return call, program.compiled.memory_analysis().temp_size_in_bytes


def measure(curve: Curve, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """For each point its line, x, bytes and milliseconds, or the reason why there are none."""
    found: list[dict[str, Any]] = []
    calls: list[Callable[[], int] | None] = []
    for point in curve.points:
        say(f"{curve.name}: compiling {point.line}, {point.x}")
        entry: dict[str, Any] = {"line": point.line, "x": point.x}
        call = None
        try:
            call, entry["bytes"] = _compiled(point)
        except Exception as error:  # noqa: BLE001 - an adjoint may not do everything that others do; that is a result
            entry["problem"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        found.append(entry)
        calls.append(call if entry.get("bytes", 0) <= _MOST_BYTES else None)
    for turn in range(_ROUNDS):
        for entry, call in zip(found, calls, strict=True):
            rounds = entry.setdefault("rounds", [])
            if call is not None and all(ms < _LONG_MS for ms in rounds):
                say(f"{curve.name}: round {turn + 1}, {entry['line']}, {entry['x']}")
                rounds.append(min(timed_calls(call, seconds=0.05, most=3, warm=False)))
    for entry in found:
        if entry["rounds"]:
            entry["ms"] = statistics.median(entry["rounds"])
    return found


def _table(curve: Curve, points: list[dict[str, Any]]) -> Table:
    table = Table("", curve.axis, "ms", "temporary MiB", title=curve.title, title_justify="left")
    for point in points:
        if "problem" in point:
            table.add_row(point["line"], str(point["x"]), "", point["problem"])
        else:
            ms = f"{point['ms']:,.3g}" if "ms" in point else "not run"
            table.add_row(point["line"], str(point["x"]), ms, f"{point['bytes'] / 2**20:,.1f}")
    return table


def growth(points: list[dict[str, Any]], parameters: int) -> dict[str, float]:
    """For each adjoint, what an inner step adds to the memory, in units of the network's parameters."""
    slopes = {}
    for line in dict.fromkeys(point["line"] for point in points):
        known = sorted((p["x"], p["bytes"]) for p in points if p["line"] == line and "bytes" in p)
        if len(known) > 1:
            (first, low), (last, high) = known[0], known[-1]
            slopes[line] = (high - low) / (last - first) / (4 * parameters)
    return slopes


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measure and draw; returns what was measured."""
    size = smoke if options.smoke else lambda workload: workload
    record: dict[str, Any] = {}
    options.pictures.mkdir(parents=True, exist_ok=True)
    with console.status("") as status:
        for name in options.curves:
            curve = CURVES[name](size)
            points = measure(curve, lambda text: status.update(text))
            record[name] = {"title": curve.title, "axis": curve.axis, "points": points}
            parameters = None
            if name == "steps":
                drawn = weights(curve.points[0].workload, np.random.default_rng(SEED))
                parameters = sum(value.size for value in drawn.values())
                record[name] |= {"parameters": parameters, "growth": growth(points, parameters)}
            pictures.curve(record[name], options.pictures / f"scaling-{name}.png", parameters=parameters)
            console.print(_table(curve, points))
            for line, slope in record[name].get("growth", {}).items():
                console.print(f"{line}: an inner step adds {slope:.2f} times the parameters", highlight=False)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scaling.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    run(tyro.cli(Options, prog="python -m tests.bench.scaling"), Console())
    sys.exit(0)
