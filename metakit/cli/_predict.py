"""`metakit predict`: learn new classes, or a new curve, from a few examples, and label others."""

import dataclasses
import pathlib
from typing import Literal

import jax.numpy as jnp
from rich.console import Console

from metakit import experiments, recipes
from metakit._episode import Examples
from metakit.experiments import PredictError, Run

from ._parse import parse
from ._usage import say


@dataclasses.dataclass(frozen=True)
class Predict:
    """Learn new classes from a few images of each, or a new curve from a few points, and predict for others."""

    run: pathlib.Path
    """Run folder."""
    support: pathlib.Path
    """Folder with one folder of images, one or more, for each class; for curves a CSV file with x and y."""
    query: tuple[pathlib.Path, ...]
    """Images, or folders of them; for curves a CSV file with x."""
    out: pathlib.Path = pathlib.Path("predictions.csv")
    """Where to write; a picture stands beside it."""
    which: Literal["tested", "best", "last"] = "tested"
    """Which learner of the run."""
    changed_recipe: bool = False
    """Use a run whose recipe, of your own, has changed since."""


def run(words: list[str], console: Console) -> int:
    """Write predictions and a picture; returns the exit status."""
    if words and not words[0].startswith("-"):
        words = ["--run", *words]
    options = parse(Predict, words, "predict RUN")
    opened = recipes.open_run(options.run, options.which, changed_recipe=options.changed_recipe)
    if options.support.suffix == ".csv":
        support, x, names, queries = _curve(opened, options)
    else:
        support, names = experiments.read_support(opened, options.support)
        x, queries = experiments.read_queries(opened, options.query)
    found = experiments.predict(opened, support, x, names=names, queries=queries)
    found.write(options.out)
    picture = options.out.with_suffix(".png")
    experiments.draw_predictions(opened, support, x, found, picture)
    learnt = f"{len(names)} classes" if names else f"{len(support.x)} points"
    say(console, f"learnt {learnt}, asked about {len(queries)}")
    say(console, f"predictions: {options.out}; picture: {picture}")
    return 0


def _curve(opened: Run, options: Predict):
    if opened.data is not None:
        raise PredictError(
            f"{options.run} was trained on images; give --support a folder with one folder for each class."
        )
    if len(options.query) != 1:
        raise PredictError(f"--query must be one CSV file for a curve, got {len(options.query)} files.")
    from_x, from_y = experiments.read_curve(options.support, with_targets=True)
    x, _ = experiments.read_curve(options.query[0], with_targets=False)
    return Examples(from_x, from_y), jnp.asarray(x), (), tuple(str(value) for value in x[:, 0])
