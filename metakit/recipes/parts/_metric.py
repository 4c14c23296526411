"""What the recipes of learners that embed and compare share."""

import dataclasses
from typing import Any

from metakit import experiments
from metakit.experiments import Experiment

from ._images import AnyWay, OneWay, Parts
from ._loops import Adam, Budget, OuterLoop
from ._norms import NO_NORM, Norm


class METRIC:
    """The usual options on Glyphs, which are made for minutes."""

    tasks = AnyWay()
    norm = Norm(norm_policy="joint")
    outer = Adam(rate=2e-3, schedule="cosine")
    budget = Budget(steps=300, meta_batch=1, validate_every=100)


# Where a published schedule does not fit an hour it is shortened, and docs/results.md says by how much.
MORE_TASKS = {"test_tasks": 1000, "validation_tasks": 300}
ON_OMNIGLOT = {"queries": 5, "test_queries": 15, "steps": 5000, "validate_every": 1000, **MORE_TASKS}
# A folder is not made for minutes, as Glyphs are: a user reported that 300 steps ended below gradient histograms.
ON_FOLDER = {"steps": 1200, "validate_every": 300}
LONGER_ON_OMNIGLOT = ON_OMNIGLOT | {"steps": 10_000, "validate_every": 2000}


def on_episodes(
    algorithm: Any,
    learner: Any,
    about: str,
    parts: Parts,
    tasks: OneWay,
    norm: Norm | None,
    outer: OuterLoop,
    budget: Budget,
    *,
    in_random_order: bool = False,
    norm_in_words: str = NO_NORM,
    notes: tuple[str, ...] = (),
    **more: Any,
) -> Experiment:
    """Train any learner on episodes of images with Adam.

    `in_random_order` is for learners that read the support set as a sequence, which sorted by label would give the
    labels away."""
    words = parts.words(about, tasks.in_words, norm_in_words if norm is None else norm.in_words)
    fields: dict[str, Any] = {
        "optimiser": outer.optimiser(budget.steps),
        "train": parts.episodes("train", tasks.of_training, shuffle=in_random_order),
        "val": parts.episodes("val", tasks.of_test, shuffle=in_random_order),
        "test": parts.episodes("test", tasks.of_test, shuffle=in_random_order),
        "scores": experiments.accuracy(),
        "words": dataclasses.replace(words, notes=(*words.notes, *notes)),
        **parts.shown,
        **budget.of_experiment,
    }
    return Experiment(algorithm, learner, **fields | more)
