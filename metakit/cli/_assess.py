"""The final test: the learner and its baselines on the same episodes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import evaluate, metrics
from metakit._algorithm import Algorithm, MetaLearner
from metakit._hyperparameter import Hyperparameter
from metakit.inner import SGD
from metakit.learners import maml
from metakit.tasks import linear_posterior

from ._config import Settings
from ._data import Data
from ._presets import ALGORITHMS, build_learner

# Enough steps for a network that was not meta-trained to fit a handful of examples, at a rate it tolerates.
_BASELINE_STEPS = 50
_BASELINE_RATE = {True: 0.01, False: 0.1}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result table."""

    name: str
    score: evaluate.Interval
    bootstrap: evaluate.Interval
    median: float
    advantage: evaluate.Interval | None  # of the meta-trained learner over this row, paired


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What a test gave."""

    rows: list[Row]
    nll: evaluate.Interval | None
    calibration_error: float | None


def test_learner(settings: Settings, learner: Any) -> Any:
    """The learner as it is tested: with its number of test steps."""
    if ALGORITHMS[settings.algorithm].gradient_based and settings.test_inner_steps != settings.inner_steps:
        return maml.with_num_steps(learner, settings.test_inner_steps)
    return learner


def metric_of(settings: Settings) -> dict[str, Any]:
    return {"error": metrics.mean_squared_error} if settings.regression else {"accuracy": metrics.accuracy}


def assess(settings: Settings, data: Data, learner: Any, key: jax.Array) -> Assessment:
    """Score the learner and its baselines on `settings.test_tasks` test tasks."""
    name = next(iter(metric_of(settings)))
    extra = {} if settings.regression else {"nll": metrics.negative_log_likelihood}
    contenders = {"meta-trained": (ALGORITHMS[settings.algorithm].algorithm, test_learner(settings, learner))}
    contenders |= baselines(settings, data)
    scores = {
        label: evaluate.scores(
            algorithm, module, data.test, key, num_tasks=settings.test_tasks, metrics=metric_of(settings) | extra
        )
        for label, (algorithm, module) in contenders.items()
    }
    ours = scores["meta-trained"][name]
    rows = [
        Row(
            label,
            evaluate.student_t(score[name]),
            evaluate.bootstrap(score[name], jax.random.fold_in(key, 1)),
            float(jnp.nanmedian(score[name])),
            None if label == "meta-trained" else evaluate.paired_difference(ours, score[name]),
        )
        for label, score in scores.items()
    ]
    if settings.regression:
        return Assessment(rows, None, None)
    algorithm, module = contenders["meta-trained"]
    calibrated = evaluate.calibration(algorithm, module, data.test, key, num_tasks=settings.test_tasks)
    return Assessment(rows, evaluate.student_t(scores["meta-trained"]["nll"]), float(calibrated.error))


def baselines(settings: Settings, data: Data) -> dict[str, tuple[Algorithm, Any]]:
    """What meta-training must beat, and for lines what nothing can."""
    entry = ALGORITHMS[settings.algorithm]
    fresh = build_learner(settings, data.pools.get("train"), jax.random.key(settings.seed))
    found: dict[str, tuple[Algorithm, Any]] = {}
    if entry.gradient_based:
        rate = SGD(_BASELINE_RATE[settings.regression])
        tuned = dataclasses.replace(fresh, inner=rate, num_steps=_BASELINE_STEPS, step_weights=None)
        found[f"not meta-trained, adapted for {_BASELINE_STEPS} steps"] = (entry.algorithm, tuned)
    else:
        found["not meta-trained"] = (entry.algorithm, fresh)
    if not settings.regression:
        found["nearest neighbour on pixels"] = (evaluate.baselines.nearest_neighbour, Hyperparameter(0.0))
    elif settings.data == "linear":
        found["oracle: Bayes posterior mean"] = (_ORACLE, data.test)
    return found


def _oracle_adapt(tasks: Any, support: Any, key: Any = None) -> Any:
    del key
    return linear_posterior(tasks, support).mean


def _oracle_predict(mean: Any, x: Any, key: Any = None) -> Any:
    del key
    return (mean[0] * x[:, 0] + mean[1])[:, None]


def _oracle_loss(tasks: Any, task: Any, key: Any = None) -> Any:
    del key
    return metrics.mean_squared_error(_oracle_predict(_oracle_adapt(tasks, task.support), task.query.x), task.query.y)


_ORACLE = MetaLearner(_oracle_adapt, _oracle_predict, _oracle_loss)


def by_inner_steps(settings: Settings, data: Data, learner: Any, key: jax.Array) -> list[evaluate.Interval]:
    """The test score after 0, 1, 2, ... inner steps, on the same tasks in one call."""
    last = max(settings.test_inner_steps, settings.inner_steps)
    metric = next(iter(metric_of(settings).values()))
    longer = maml.with_num_steps(learner, last)
    scores = evaluate.scores_of(
        eqx.Partial(_path_scores, longer, metric=metric, num_steps=last),
        data.test,
        key,
        num_tasks=settings.test_tasks,
    )
    return [evaluate.student_t(column) for column in jnp.moveaxis(scores, 1, 0)]


def _path_scores(learner: Any, task: Any, key: Any, *, metric: Any, num_steps: int) -> Any:
    del key
    steps = maml.path(learner, task.support, num_steps=num_steps)
    outputs = eqx.filter_vmap(maml.predict, in_axes=(0, None))(steps, task.query.x)
    return jax.vmap(metric, in_axes=(0, None))(outputs, task.query.y)
