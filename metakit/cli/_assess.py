"""The final test: the learner and its baselines on the same episodes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import evaluate
from metakit._algorithm import Algorithm
from metakit.learners import maml

from ._algorithms import ALGORITHMS, as_tested, build_learner, form_of
from ._config import Settings
from ._data import Data
from ._forms import EPISODES, ORDERED_EPISODES, Series


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
    series: list[Series]


def try_out(settings: Settings, data: Data, learner: Any) -> None:
    """Trace the learner's test on two tasks: what does not fit together is refused without computing anything."""
    form, algorithm = form_of(settings), ALGORITHMS[settings.algorithm].algorithm

    def test(learner: Any, key: jax.Array) -> Any:
        module = as_tested(settings, learner, data.pools.get("train"))
        return form.scores(algorithm, module, data.test, key, num_tasks=2)

    eqx.filter_eval_shape(test, learner, jax.random.key(0))


def assess(settings: Settings, data: Data, learner: Any, key: jax.Array) -> Assessment:
    """Score the learner and its baselines on `settings.test_tasks` test tasks."""
    form, algorithm = form_of(settings), ALGORITHMS[settings.algorithm].algorithm
    module = as_tested(settings, learner, data.pools.get("train"))
    contenders = {"meta-trained": (algorithm, module)} | baselines(settings, data)
    scores = {
        label: form.scores(*contender, data.test, key, num_tasks=settings.test_tasks)
        for label, contender in contenders.items()
    }
    ours = scores["meta-trained"]
    rows = [
        Row(
            label,
            evaluate.student_t(score[form.score]),
            evaluate.bootstrap(score[form.score], jax.random.fold_in(key, 1)),
            float(jnp.nanmedian(score[form.score])),
            None if label == "meta-trained" else evaluate.paired_difference(ours[form.score], score[form.score]),
        )
        for label, score in scores.items()
    ]
    nll = calibration_error = None
    if form in (EPISODES, ORDERED_EPISODES):
        nll = evaluate.student_t(ours["nll"])
        calibrated = evaluate.calibration(algorithm, module, data.test, key, num_tasks=settings.test_tasks)
        calibration_error = float(calibrated.error)
    return Assessment(rows, nll, calibration_error, form.series(ours))


def baselines(settings: Settings, data: Data) -> dict[str, tuple[Algorithm, Any]]:
    """What meta-training must beat, and for lines what nothing can."""
    known = ALGORITHMS[settings.algorithm]
    images = data.pools.get("train")
    fresh = build_learner(settings, images, jax.random.key(settings.seed))
    name, untrained = "not meta-trained", as_tested(settings, fresh, images)
    if known.untrained is not None:
        name, untrained = known.untrained(settings, fresh)
    return {name: (known.algorithm, untrained)} | form_of(settings).baselines(settings, data.test)


def by_inner_steps(settings: Settings, data: Data, learner: Any, key: jax.Array) -> list[Series]:
    """The test score after 0, 1, 2, ... inner steps, on the same tasks in one call."""
    form = form_of(settings)
    if not ALGORITHMS[settings.algorithm].reports_steps:
        return []
    last = max(settings.test_inner_steps, settings.inner_steps)
    longer = maml.with_num_steps(learner, last)
    scores = evaluate.scores_of(
        eqx.Partial(_path_scores, longer, metric=form.metric, num_steps=last),
        data.test,
        key,
        num_tasks=settings.test_tasks,
    )
    return [Series("inner steps", 0, [evaluate.student_t(column) for column in jnp.moveaxis(scores, 1, 0)])]


def _path_scores(learner: Any, task: Any, key: Any, *, metric: Any, num_steps: int) -> Any:
    del key
    steps = maml.path(learner, task.support, num_steps=num_steps)
    outputs = eqx.filter_vmap(maml.predict, in_axes=(0, None))(steps, task.query.x)
    return jax.vmap(metric, in_axes=(0, None))(outputs, task.query.y)
