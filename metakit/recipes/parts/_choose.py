"""Which learner to take: the sensible ones on one's own data, within some minutes."""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metakit import experiments, train
from metakit.experiments import Comparison, Experiment

from ._find import find
from ._option_error import OptionError
from ._recipe import Recipe

# A metric learner, a closed-form head and an inner loop: cheap, and different enough to tell something.
SENSIBLE = ("prototypical", "r2d2", "maml")
# What is left of a recipe's share of time for its test, its baselines and its pictures.
_FOR_TRAINING = 0.6
_FEWEST_STEPS, _VALIDATIONS = 10, 5


def choose(
    out: pathlib.Path,
    given: Mapping[str, Any],
    *,
    minutes: float = 10.0,
    way: int = 5,
    shot: int = 1,
    queries: int = 5,
    recipes: Sequence[str] = SENSIBLE,
    tell: Callable[[str], None] = lambda words: None,
    quiet: bool = True,
) -> tuple[Comparison, str]:
    """Train the sensible learners on the same data, each for its share of some minutes, and compare them.

    **Arguments:**

    - `out`: a new folder for the runs, `comparison.md` and its picture.
    - `given`: options that all recipes share, such as `{"data": "folder", "path": "pictures"}`.
    - `minutes`: in all; a rough budget, since compilation and tests are guessed. Default 10.
    - `way`, `shot`, `queries`: of the test episodes; defaults 5, 1 and 5.
    - `recipes`: which to try; default `SENSIBLE`.
    - `tell`: is told in words what is going on; default nobody.
    - `quiet`: show no progress of the trainings; default `True`.

    **Returns:** a `Comparison`, and which to take, in words.

    **Raises:** `OptionError` for a budget that is not positive, fewer than two recipes, or a folder in use.

    >>> choose(pathlib.Path("runs/none"), {}, recipes=["maml"])
    Traceback (most recent call last):
    ...
    metakit.recipes...OptionError: --recipes must name at least two, got 1.
    """
    if not minutes > 0:
        raise OptionError(f"--minutes must be above 0, got {minutes}.")
    if len(set(recipes)) < 2:
        raise OptionError(f"--recipes must name at least two, got {len(set(recipes))}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"--out {out} exists and is not empty. Choose another folder.")
    folders = []
    for name in recipes:
        recipe = find(name)
        options = _episodes(recipe, {**given}, way, shot, queries)
        steps = _steps_within(recipe, options, 60 * minutes * _FOR_TRAINING / len(recipes))
        tell(f"{name}: {steps} steps")
        experiment = recipe.build(recipe.settle({**options, "steps": steps, "validate_every": steps // _VALIDATIONS}))
        experiments.run(experiment, out / name, quiet=quiet)
        folders.append(out / name)
    comparison = experiments.compare(folders, out)
    return comparison, which_to_take(comparison)


def _episodes(recipe: Recipe, given: dict[str, Any], way: int, shot: int, queries: int) -> dict[str, Any]:
    """The same test episodes for every recipe, and training episodes that the data has classes for."""
    known = recipe.options(given.get("data"))
    asked = {"test_queries": queries, "shot": shot}
    asked |= {"test_way": way} if "test_way" in known else {"way": way}
    options = given | {name: value for name, value in asked.items() if name in known}
    if "test_way" in known:
        try:
            recipe.build(recipe.settle(options))
        except OptionError:  # fewer classes than the recipe trains with
            options["way"] = way
    return options


def _steps_within(recipe: Recipe, options: Mapping[str, Any], seconds: float) -> int:
    """How many steps fit, by the time of a few, compilation included."""
    experiment = recipe.build(recipe.settle(options))
    started = time.perf_counter()
    state = _few_steps(experiment, train.init(experiment.learner, experiment.optimiser, key=jax.random.key(0)))
    compiled = time.perf_counter()
    _few_steps(experiment, state)
    each = (time.perf_counter() - compiled) / _FEWEST_STEPS
    fitting = (seconds - (compiled - started)) / each
    return _VALIDATIONS * max(int(fitting) // _VALIDATIONS, _FEWEST_STEPS // _VALIDATIONS)


def _few_steps(experiment: Experiment, state: train.TrainState) -> train.TrainState:
    state, diagnostics = train.run_steps(
        experiment.algorithm,
        experiment.optimiser,
        state,
        experiment.train,
        num_steps=_FEWEST_STEPS,
        meta_batch=experiment.meta_batch,
        chunk=experiment.chunk,
    )
    np.asarray(diagnostics.loss)  # wait for it
    return state


def which_to_take(comparison: Comparison) -> str:
    """The recommendation in words."""
    first, *others = comparison.rows
    runs = [row for row in others if row.steps is not None]
    close = [row for row in runs if row.difference is not None and row.difference.low <= 0 <= row.difference.high]
    beaten_by = [row for row in others if row.steps is None and _not_beaten(row, comparison.best)]
    if beaten_by:
        return (
            f"None of them beats the baseline '{beaten_by[0].name}' beyond doubt. Take the baseline, or give more "
            "--minutes."
        )
    if close:
        named = ", ".join(row.name for row in close)
        return f"Take {first.name}; {named} cannot be told from it with these tasks and this time."
    return f"Take {first.name}."


def _not_beaten(row: Any, best: str) -> bool:
    if row.difference is None:
        return False
    return row.difference.low <= 0 if best == "highest" else row.difference.high >= 0
