"""`metakit choose`: which learner to take on your own data."""

import dataclasses
import functools
import pathlib
import time
from typing import Any

from rich.console import Console

from metakit import recipes

from ._compare import comparison_table
from ._parse import parse
from ._usage import say


@dataclasses.dataclass(frozen=True)
class Choose:
    """Try the sensible learners and baselines on your own images within some minutes, and say which to take."""

    path: pathlib.Path | None = None
    """Folder of the data: one sub-folder of images for each class."""
    data: str = "folder"
    """What to train on."""
    minutes: float = 10.0
    """Time for all of them, roughly."""
    way: int = 5
    """Classes in a test episode."""
    shot: int = 1
    """Support examples of each class."""
    queries: int = 5
    """Query examples of each class in a test episode."""
    recipes: tuple[str, ...] = ("prototypical", "r2d2", "maml")
    """Which to try."""
    seed: int = 0
    """Seed of every random draw."""
    out: pathlib.Path | None = None
    """Folder for the runs and the comparison; by default runs/choice-TIME."""


def run(words: list[str], console: Console) -> int:
    """Train, compare and recommend; returns the exit status."""
    options = parse(Choose, words, "choose")
    out = options.out or pathlib.Path("runs") / f"choice-{time.strftime('%Y%m%d-%H%M%S')}"
    given: dict[str, Any] = {"data": options.data, "seed": options.seed}
    if options.path is not None:
        given["path"] = options.path

    comparison, advice = recipes.choose(
        out,
        given,
        minutes=options.minutes,
        way=options.way,
        shot=options.shot,
        queries=options.queries,
        recipes=options.recipes,
        tell=functools.partial(say, console),
        quiet=False,
    )
    console.print(comparison_table(comparison))
    say(console, advice)
    say(console, f"comparison: {out / 'comparison.md'}")
    return 0
