"""Several learners on the same tasks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from metakit._typecheck import typed
from metakit._types import PRNGKey

from ._interval import Interval, paired_difference, student_t
from ._scores import scores


class Comparison(NamedTuple):
    """Several learners on the same tasks.

    **Arguments:** made by `compare`; each is a dictionary by name.

    - `intervals`: each learner's mean score.
    - `differences`: for all but the first, the paired difference of the *first* learner's score from it.
    - `scores`: per-task scores, `[tasks]` each.

    >>> Comparison({}, {}, {}).differences
    {}
    """

    intervals: dict[str, Interval]
    differences: dict[str, Interval]
    scores: dict[str, Any]


@typed
def compare(
    learners: Mapping[str, tuple[Any, Any]],
    sampler: Callable[..., Any],
    key: PRNGKey,
    *,
    num_tasks: int,
    metric: Callable[..., Any],
    level: float = 0.95,
    mesh: Mesh | None = None,
    chunk: Any = "auto",
) -> Comparison:
    """Evaluate several learners, of any families, on the same tasks, and compare all others with the first.

    **Arguments:**

    - `learners`: `{name: (algorithm, learner)}`, at least two; the first is what the others are compared
      with.
    - `sampler`, `key`, `num_tasks`, `mesh`, `chunk`: as in `scores`.
    - `metric`: `metric(outputs, targets) -> scalar`, such as `mk.metrics.accuracy`.
    - `level`: of each interval; default 0.95. It is not corrected for making several comparisons.

    **Returns:** a `Comparison`.

    **Raises:** `ValueError` for fewer than two learners or tasks, and everything that `scores` raises.

    >>> import jax, numpy as np, metakit as mk
    >>> images = np.random.default_rng(0).integers(0, 255, (5, 4, 1, 2, 2), "uint8")
    >>> tasks = mk.tasks.Episodes(mk.tasks.ImagePool(images), way=5, shot=1, queries=2)
    >>> nearest = (mk.evaluate.baselines.nearest_neighbour, None)
    >>> both = {"nearest neighbour": nearest, "the same again": nearest}
    >>> result = compare(both, tasks, jax.random.key(1), num_tasks=20, metric=mk.metrics.accuracy)
    >>> result.differences["the same again"].high
    0.0
    """
    if len(learners) < 2:
        raise ValueError(f"a comparison needs at least two learners, got {list(learners)}. For one, use scores.")
    if num_tasks < 2:
        raise ValueError(f"num_tasks must be at least 2 for an interval, got {num_tasks}; 600 to 10,000 are usual.")
    found = {
        name: np.asarray(
            scores(
                algorithm,
                learner,
                sampler,
                key,
                num_tasks=num_tasks,
                metrics={"score": metric},
                mesh=mesh,
                chunk=chunk,
            )["score"]
        )
        for name, (algorithm, learner) in learners.items()
    }
    first, *others = found
    intervals = {name: student_t(values, level=level) for name, values in found.items()}
    differences = {name: paired_difference(found[first], found[name], level=level) for name in others}
    return Comparison(intervals, differences, found)
