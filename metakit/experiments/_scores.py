"""What a task is scored by."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from metakit import evaluate, metrics
from metakit.evaluate import Interval


@dataclasses.dataclass(frozen=True)
class Series:
    """A test score against a count, such as inner steps.

    **Arguments:** `name` of what is counted; `first`, where the count begins; `intervals`, one for each.

    >>> Series("inner steps", 0, []).first
    0
    """

    name: str
    first: int
    intervals: list[Interval]


class AbstractScores(abc.ABC):
    """What a task is scored by. Subclass it where a score is not a metric of outputs and targets.

    - `name`: the score that decides, a key of what `of` returns.
    - `in_words`: the same in full, with its unit.
    - `best`: whether the `"highest"` or the `"lowest"` is best.
    - `is_share`: whether it is a share of 1, shown in percent.

    >>> import metakit as mk
    >>> mk.experiments.accuracy().best
    'highest'
    """

    name: str
    in_words: str
    best: Literal["highest", "lowest"]
    is_share: bool

    @abc.abstractmethod
    def of(self, algorithm: Any, learner: Any, sampler: Any, key: Any, *, num_tasks: int) -> dict[str, Any]:
        """The score of each task under its name, and whatever else is reported: arrays `[num_tasks, ...]`."""

    def series(self, scores: dict[str, Any]) -> list[Series]:
        """Scores that count something within a task, from what `of` returned; by default none."""
        del scores
        return []

    def show(self, interval: Interval) -> str:
        """An interval as a report shows it."""
        return percent(interval) if self.is_share else plain(interval)


def percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.2f} ± {50 * (interval.high - interval.low):.2f} %"


def plain(interval: Interval) -> str:
    return f"{interval.mean:.4f} ± {(interval.high - interval.low) / 2:.4f}"


@dataclasses.dataclass(frozen=True)
class MetricScores(AbstractScores):
    """Metrics of outputs and targets, of which the first decides; made by `metric` and its relatives.

    **Arguments:** `name`; `metrics`, pairs of a name and a function; `in_words`, `best` and `is_share`, as in
    `AbstractScores`; `of_classes`, whether outputs are logits of classes, whose calibration and answers to lone queries
    a report shows too.

    >>> accuracy().of_classes
    True
    """

    name: str
    metrics: tuple[tuple[str, Callable[..., Any]], ...]
    in_words: str
    best: Literal["highest", "lowest"]
    is_share: bool = False
    of_classes: bool = False

    def of(self, algorithm: Any, learner: Any, sampler: Any, key: Any, *, num_tasks: int) -> dict[str, Any]:
        return evaluate.scores(algorithm, learner, sampler, key, num_tasks=num_tasks, metrics=dict(self.metrics))


def metric(
    name: str,
    function: Callable[..., Any],
    *,
    best: Literal["highest", "lowest"],
    in_words: str | None = None,
    is_share: bool = False,
) -> AbstractScores:
    """Score a task by a metric of your own.

    **Arguments:**

    - `name`: of the score in logs.
    - `function`: `function(outputs, targets) -> scalar`, as those of `mk.metrics`.
    - `best`: whether the `"highest"` or the `"lowest"` is best.
    - `in_words`: for reports and pictures; default the name.
    - `is_share`: whether it is a share of 1, shown in percent; default `False`.

    **Returns:** an `AbstractScores`.

    >>> import jax.numpy as jnp
    >>> largest = metric("largest", lambda outputs, targets: jnp.max(jnp.abs(outputs - targets)), best="lowest")
    >>> largest.in_words
    'largest'
    """
    return MetricScores(name, ((name, function),), in_words or name.replace("_", " "), best, is_share)


def accuracy() -> AbstractScores:
    """The share of a task's queries that are classified rightly; beside it the negative log-likelihood.

    **Returns:** an `AbstractScores`.

    >>> accuracy().is_share
    True
    """
    both = (("accuracy", metrics.accuracy), ("nll", metrics.negative_log_likelihood))
    return MetricScores("accuracy", both, "accuracy", "highest", is_share=True, of_classes=True)


def mean_squared_error() -> AbstractScores:
    """The mean squared error over a task's queries.

    **Returns:** an `AbstractScores`.

    >>> mean_squared_error().best
    'lowest'
    """
    return MetricScores("error", (("error", metrics.mean_squared_error),), "mean squared error", "lowest")


def log_density() -> AbstractScores:
    """The log-density of a task's targets under the predicted distributions, in nats a target.

    **Returns:** an `AbstractScores`.

    >>> log_density().best
    'highest'
    """
    words = "log-density per new point (nats)"
    return MetricScores("log_density", (("log_density", metrics.log_density),), words, "highest")
