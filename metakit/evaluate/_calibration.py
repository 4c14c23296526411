"""Calibration of confidences, pooled over tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metakit._algorithm import require_algorithm
from metakit._episode import require_unmasked
from metakit._typecheck import typed
from metakit._types import PRNGKey

from ._scores import scores_of


class Calibration(NamedTuple):
    """How far confidence and accuracy are apart: a reliability diagram and its summary.

    **Arguments:** made by `calibration` and `reliability`; `[bins]` arrays hold NaN where a bin is empty.

    - `error`: the expected calibration error.
    - `accuracy`, `confidence`: the mean of each bin, `[bins]`.
    - `count`: predictions in each bin, `[bins]`.
    - `edges`: of the bins, `[bins + 1]`.
    - `num_nonfinite`: predictions whose confidence is NaN; if there are any, `error` is NaN.

    >>> Calibration(0.1, None, None, None, None, 0).error
    0.1
    """

    error: float
    accuracy: Any
    confidence: Any
    count: Any
    edges: Any
    num_nonfinite: int


@typed
def reliability(confidence: Any, correct: Any, *, num_bins: int = 15) -> Calibration:
    r"""Bin predictions by confidence and compare it with accuracy.

    $$\mathrm{ECE} = \sum_b \frac{n_b}{n} \lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert$$

    **Arguments:**

    - `confidence`: probabilities of the predicted classes, any shape.
    - `correct`: whether each prediction is right, the same shape, booleans or 0 and 1.
    - `num_bins`: equal bins of $(0, 1]$, each open on the left; 15 as in the source.

    **Returns:** a `Calibration`.

    **Raises:** `ValueError` for different shapes, no prediction, or `num_bins` below 1.

    **Source:** Guo et al. 2017, *On Calibration of Modern Neural Networks*, equation 3,
    https://arxiv.org/abs/1706.04599

    >>> round(reliability([0.8, 0.8, 0.6, 0.6], [1, 1, 1, 0], num_bins=5).error, 6)
    0.15
    """
    p, right = np.asarray(confidence, np.float64).ravel(), np.asarray(correct, np.float64).ravel()
    if np.shape(confidence) != np.shape(correct) or p.size == 0:
        raise ValueError(
            "confidence and correct must have one shape and at least one prediction, got "
            f"{list(np.shape(confidence))} and {list(np.shape(correct))}."
        )
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}; the usual value is 15.")
    finite = np.isfinite(p)
    p, right = p[finite], right[finite]
    bins = np.clip(np.ceil(p * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    total_p, total_right = (np.bincount(bins, weights=w, minlength=num_bins) for w in (p, right))
    lost = int(np.sum(~finite))
    error = np.nan if lost else float(np.sum(np.abs(total_right - total_p)) / p.size)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        means = total_right / count, total_p / count
    return Calibration(error, *means, count, np.linspace(0.0, 1.0, num_bins + 1), lost)


def _confidences(algorithm: Any, learner: Any, task: Any, key: Any) -> tuple[Any, Any]:
    require_unmasked(task.query, "mk.evaluate.calibration", "query")
    adapt_key, predict_key = jax.random.split(key)
    logits = algorithm.predict(algorithm.adapt(learner, task.support, adapt_key), task.query.x, predict_key)
    right = jnp.argmax(logits, axis=-1).astype(task.query.y.dtype) == task.query.y
    return jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1), right


@typed
def calibration(
    algorithm: Any,
    learner: Any,
    sampler: Callable[..., Any],
    key: PRNGKey,
    *,
    num_tasks: int,
    num_bins: int = 15,
    mesh: Mesh | None = None,
    chunk: Any = "auto",
) -> Calibration:
    """Calibration over the query predictions of many tasks, pooled.

    Averaging the calibration error of single tasks instead would overstate it: the few queries of a task
    leave every bin's accuracy noisy, and the absolute value turns noise into error.

    **Arguments:**

    - `algorithm`, `learner`, `sampler`, `key`, `num_tasks`, `mesh`, `chunk`: as in `scores`; the learner
      classifies.
    - `num_bins`: as in `reliability`.

    **Returns:** a `Calibration`.

    **Raises:** `ValueError` when `num_tasks`, `num_bins` or `chunk` is below 1; `TypeError` for something
    that is no algorithm.

    >>> import jax, numpy as np, metakit as mk
    >>> images = np.random.default_rng(0).integers(0, 255, (5, 4, 1, 2, 2), "uint8")
    >>> tasks = mk.tasks.Episodes(mk.tasks.ImagePool(images), way=5, shot=1, queries=2)
    >>> nearest = mk.evaluate.baselines.nearest_neighbour
    >>> result = calibration(nearest, None, tasks, jax.random.key(1), num_tasks=3)
    >>> int(result.count.sum())
    30
    """
    require_algorithm(algorithm)
    function = eqx.Partial(_confidences, algorithm, learner)
    confidence, right = scores_of(function, sampler, key, num_tasks=num_tasks, mesh=mesh, chunk=chunk)
    return reliability(np.asarray(confidence), np.asarray(right), num_bins=num_bins)
