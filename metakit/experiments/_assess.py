"""The final test: the learner and what it must beat, on the same tasks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import evaluate

from ._baselines import fitting_baselines
from ._experiment import Experiment
from ._scores import MetricScores, Series

TRAINED = "meta-trained"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result table.

    **Arguments:** `name`; `score` and `bootstrap`, two intervals of its mean; `median`; `advantage`, the paired
    difference of the meta-trained learner over this one, `None` for itself.

    >>> interval = evaluate.student_t([0.5, 0.7])
    >>> Row("mine", interval, interval, 0.6, None).median
    0.6
    """

    name: str
    score: evaluate.Interval
    bootstrap: evaluate.Interval
    median: float
    advantage: evaluate.Interval | None


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What a test gave.

    **Arguments:**

    - `rows`: the learner first, then its baselines.
    - `nll`, `calibration_error`: of a learner that classifies; `None` elsewhere.
    - `alone`: the score with each query asked alone; `None` where that means nothing.
    - `sharing`: the paired difference of the learner's score over `alone`.
    - `series`: scores against a count.
    - `tasks`: the score of every task, by row.

    >>> Assessment([]).rows
    []
    """

    rows: list[Row]
    nll: evaluate.Interval | None = None
    calibration_error: float | None = None
    alone: evaluate.Interval | None = None
    sharing: evaluate.Interval | None = None
    series: list[Series] = dataclasses.field(default_factory=list)
    tasks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def try_out(experiment: Experiment) -> None:
    """Trace the learner's test on two tasks: what does not fit together is refused without computing anything.

    **Arguments:** `experiment`.

    **Raises:** whatever the learner raises of its test tasks.

    >>> import jax.numpy as jnp, optax, metakit as mk
    >>> lines, error = mk.tasks.LinearRegression(), mk.experiments.mean_squared_error()
    >>> first = mk.MetaLearner(lambda w, s, key=None: w, lambda w, x, key=None: w * x, lambda w, t, key=None: w)
    >>> try_out(mk.Experiment(first, jnp.ones(()), optax.sgd(1.0), lines, lines, error, steps=1))
    """

    def test(learner: Any, key: jax.Array) -> Any:
        module = experiment.as_tested(learner)
        return experiment.scores.of(experiment.algorithm, module, experiment.test, key, num_tasks=2)

    eqx.filter_eval_shape(test, experiment.learner, jax.random.key(0))


def assess(
    experiment: Experiment, learner: Any, key: jax.Array, *, tell: Callable[[str, int, int], None] | None = None
) -> Assessment:
    """Score a learner and its baselines on the test tasks of an experiment.

    **Arguments:** `experiment`; `learner`, as it is tested; `key` of the stream of tasks; `tell`, called with what is
    tested, its number and of how many, by default nobody.

    **Returns:** an `Assessment`.

    >>> import jax.numpy as jnp, optax, metakit as mk
    >>> lines, error = mk.tasks.LinearRegression(), mk.experiments.mean_squared_error()
    >>> first = mk.MetaLearner(lambda w, s, key=None: w, lambda w, x, key=None: w * x, lambda w, t, key=None: w)
    >>> experiment = mk.Experiment(first, jnp.ones(()), optax.sgd(1.0), lines, lines, error, steps=1, test_tasks=3)
    >>> [row.name for row in assess(experiment, jnp.ones(()), jax.random.key(0)).rows]
    ['meta-trained', 'not meta-trained']
    """
    scores, algorithm, sampler = experiment.scores, experiment.algorithm, experiment.test
    count: dict[str, Any] = {"num_tasks": experiment.test_tasks}
    contenders = {TRAINED: (algorithm, learner)} | baselines(experiment)
    of_classes = isinstance(scores, MetricScores) and scores.of_classes
    stages = iter(range(1, 100))
    last = len(contenders) + 2 * of_classes + len(experiment.series)

    def now(what: str) -> None:
        if tell is not None:
            tell(what, next(stages), last)

    found = {}
    for label, contender in contenders.items():
        now(label)
        found[label] = scores.of(*contender, sampler, key, **count)
    ours = found[TRAINED]
    rows = [
        Row(
            label,
            evaluate.student_t(score[scores.name]),
            evaluate.bootstrap(score[scores.name], jax.random.fold_in(key, 1)),
            float(jnp.nanmedian(score[scores.name])),
            None if label == TRAINED else evaluate.paired_difference(ours[scores.name], score[scores.name]),
        )
        for label, score in found.items()
    ]
    tasks = {label: np.asarray(score[scores.name]) for label, score in found.items()}
    more: dict[str, Any] = {}
    if of_classes:
        now("calibration")
        more["nll"] = evaluate.student_t(ours["nll"])
        more["calibration_error"] = float(evaluate.calibration(algorithm, learner, sampler, key, **count).error)
        now("each query alone")
        alone = scores.of(evaluate.one_at_a_time(algorithm), learner, sampler, key, **count)[scores.name]
        more["alone"] = evaluate.student_t(alone)
        more["sharing"] = evaluate.paired_difference(ours[scores.name], alone)
        tasks["each query alone"] = np.asarray(alone)
    series = scores.series(ours)
    for measure in experiment.series:
        now("series")
        series += measure(algorithm, learner, sampler, key, **count)
    return Assessment(rows, series=series, tasks=tasks, **more)


def baselines(experiment: Experiment) -> dict[str, tuple[Any, Any]]:
    """What meta-training must beat, and for tasks with an oracle what nothing can."""
    name, learner = experiment.untrained or ("not meta-trained", experiment.as_tested(experiment.learner))
    others = experiment.baselines
    if others is None:
        others = fitting_baselines(experiment)
    return {name: (experiment.algorithm, learner), **others}
