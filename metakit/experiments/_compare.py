"""Runs side by side."""

import csv
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from metakit import evaluate
from metakit.evaluate import Interval

from . import plots
from ._assess import TRAINED
from ._folder import RunFolder, read, read_arrays, replacing, room_for, write
from ._scores import percent, plain


class CompareError(ValueError):
    """Runs that cannot stand in one table.

    **Arguments:** a message that names the runs, and says what to try.
    """


@dataclasses.dataclass(frozen=True)
class Compared:
    """One row of a comparison.

    **Arguments:** `name` of the run, or of a baseline; `score`, its mean and interval over test tasks; `difference`,
    the best run's paired advantage over this one, `None` for itself and where the tasks differ; `minutes` of training
    and test; `steps`.

    >>> Compared("mine", evaluate.student_t([0.5, 0.7])).score.mean
    0.6
    """

    name: str
    score: Interval
    difference: Interval | None = None
    minutes: float | None = None
    steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs side by side, the best first.

    **Arguments:** `rows`; `in_words`, the score; `best`, `"highest"` or `"lowest"`; `is_share`; `same_tasks`, whether
    all runs were tested on the same tasks.

    >>> Comparison((), "accuracy", "highest", True, True).best
    'highest'
    """

    rows: tuple[Compared, ...]
    in_words: str
    best: str
    is_share: bool
    same_tasks: bool

    def show(self, interval: Interval | None) -> str:
        """An interval as the table shows it."""
        if interval is None:
            return ""
        return percent(interval) if self.is_share else plain(interval)

    def table(self) -> list[list[str]]:
        """Heading and rows, as words."""
        head = ["", f"{self.in_words}, 95 % interval", "best minus this (paired)", "steps", "minutes"]
        return [head] + [
            [
                row.name,
                self.show(row.score),
                self.show(row.difference),
                "" if row.steps is None else str(row.steps),
                "" if row.minutes is None else f"{row.minutes:.1f}",
            ]
            for row in self.rows
        ]


def compare(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Comparison:
    """Set finished runs side by side: scores, and paired differences where they share their test tasks.

    **Arguments:**

    - `folders`: at least two run folders.
    - `out`: a folder for `comparison.md`, `comparison.csv` and `comparison.png`; default none.

    **Returns:** a `Comparison`, the best run first. Baselines that the best run was tested beside follow it.

    **Raises:** `CompareError` for fewer than two runs, one that is not finished, or runs that were scored by different
    scores; `RunFolderError` for a folder that is no run.

    >>> compare(["runs/one"])
    Traceback (most recent call last):
    ...
    metakit.experiments...CompareError: a comparison needs at least two runs, got 1.
    """
    places = [RunFolder(folder) for folder in folders]
    if len({place.path.resolve() for place in places}) < 2:
        raise CompareError(f"a comparison needs at least two runs, got {len(places)}.")
    records = [place.read_record() for place in places]
    for place in places:
        if not place.finished:
            raise CompareError(f"{place.path} is not finished. Continue it with --resume {place.path}.")
    for place, record in zip(places, records, strict=True):
        if record["score"] != records[0]["score"]:
            raise CompareError(
                f"{places[0].path} was scored by {records[0]['score']['in_words']}, {place.path} by "
                f"{record['score']['in_words']}. Compare runs of one kind of task."
            )
    score = records[0]["score"]
    found = _compared(places, score["best"])
    same = len({read(place.test)["fingerprint"] for place in places}) == 1
    result = Comparison(tuple(found), score["in_words"], score["best"], score["is_share"], same)
    if out is not None:
        _write(result, places, pathlib.Path(out))
    return result


def names_of(places: Sequence[RunFolder]) -> list[str]:
    """The folders' names, or as much of their paths as tells them apart."""
    for depth in itertools.count(1):
        names = ["/".join(place.path.resolve().parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError


def _compared(places: Sequence[RunFolder], best: str) -> list[Compared]:
    tests = [read(place.test) for place in places]
    scores = [read_arrays(place.scores) for place in places]
    rows = []
    for name, place, test, tasks in zip(names_of(places), places, tests, scores, strict=True):
        steps = max((r["step"] for r in place.records() if r["event"] == "progress"), default=None)
        row = Compared(name, evaluate.student_t(tasks[TRAINED]), None, test["seconds"] / 60, steps)
        rows.append((row, tasks[TRAINED], test["fingerprint"]))
    rows.sort(key=lambda row: row[0].score.mean, reverse=best == "highest")
    first, first_tasks, first_print = rows[0]
    chosen = next(i for i, name in enumerate(names_of(places)) if name == first.name)
    for baseline, tasks in scores[chosen].items():
        if baseline not in (TRAINED, "each query alone"):
            rows.append((Compared(f"{baseline} ({first.name})", evaluate.student_t(tasks)), tasks, first_print))
    return [
        row
        if row is first or fingerprint != first_print or len(tasks) != len(first_tasks)
        else dataclasses.replace(row, difference=evaluate.paired_difference(first_tasks, tasks))
        for row, tasks, fingerprint in rows
    ]


def _write(result: Comparison, places: Sequence[RunFolder], out: pathlib.Path) -> None:
    with room_for(out):
        out.mkdir(parents=True, exist_ok=True)
    head, *rows = result.table()
    lines = ["# Comparison", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if not result.same_tasks:
        lines += ["", "Not all runs were tested on the same tasks, so some differences are not paired and left out."]
    lines += ["", "![Learning curves and test scores](comparison.png)", ""]
    write(out / "comparison.md", "\n".join(lines))
    with room_for(out), replacing(out / "comparison.csv") as partial, partial.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["name", "mean", "low", "high", "difference", "difference_low", "difference_high", "steps", "minutes"]
        )
        for row in result.rows:
            gap: Any = row.difference
            three = ["", "", ""] if gap is None else [gap.mean, gap.low, gap.high]
            table.writerow([row.name, row.score.mean, row.score.low, row.score.high, *three, row.steps, row.minutes])
    curves = []
    for name, place in zip(names_of(places), places, strict=True):
        validated = [r for r in place.records() if r["event"] == "validated"]
        curves.append((name, [r["step"] for r in validated], [r["mean"] for r in validated]))
    scores = [(row.name, row.score.mean, row.score.low, row.score.high) for row in result.rows]
    plots.comparison(curves, scores, out / "comparison.png", score=result.in_words, is_share=result.is_share)
