"""How far to trust the mean of many tasks' scores."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metakit._typecheck import typed
from metakit._types import PRNGKey


class Interval(NamedTuple):
    """A mean over tasks with its confidence interval.

    **Arguments:** made by `student_t`, `bootstrap` and `paired_difference`.

    - `mean`, `median`: of the scores.
    - `std`: their standard deviation, with $n-1$ in the denominator.
    - `low`, `high`: the ends of the confidence interval *of the mean*.
    - `num_tasks`: how many scores were given.
    - `num_nonfinite`: how many of them were NaN or infinite: tasks on which the learner diverged.
    - `level`: of confidence, such as 0.95.
    - `method`: how the interval was made, and what was done with scores that are not finite.

    >>> print(Interval(0.5, 0.1, 0.48, 0.52, 0.5, 100, 0, 0.95, "Student t"))
    0.5 [0.48, 0.52] (95 %, Student t, 100 tasks)
    """

    mean: float
    std: float
    low: float
    high: float
    median: float
    num_tasks: int
    num_nonfinite: int
    level: float
    method: str

    def __str__(self) -> str:
        lost = f", {self.num_nonfinite} not finite" if self.num_nonfinite else ""
        return (
            f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}] "
            f"({100 * self.level:g} %, {self.method}, {self.num_tasks} tasks{lost})"
        )


@typed
def student_t(
    scores: Any, *, level: float = 0.95, nonfinite: Literal["propagate", "exclude"] = "propagate"
) -> Interval:
    r"""The mean of per-task scores with Student's t interval.

    $$\bar x \pm t_{n-1}\big(\tfrac{1 + \text{level}}{2}\big)\, \frac{s}{\sqrt n}$$

    Exact for normal scores and, by the central limit theorem, good for hundreds of tasks of any distribution;
    with fewer tasks and skewed scores, see `bootstrap`. It covers the choice of test tasks, not of training
    seeds.

    **Arguments:**

    - `scores`: one number per task, `[tasks]`.
    - `level`: of confidence, between 0 and 1; default 0.95.
    - `nonfinite`: what to do with NaN and infinities: `"propagate"` (the default) lets them make the mean and
      interval NaN; `"exclude"` computes over the rest. Either way they are counted in `num_nonfinite`.

    **Returns:** an `Interval`, computed in float64.

    **Raises:** `ValueError` for fewer than two scores (a single one says nothing about its own spread),
    scores that are not one number per task, or a level outside 0..1.

    >>> print(student_t([0.2, 0.4, 0.6, 0.8]))
    0.5 [0.08915, 0.9109] (95 %, Student t, 4 tasks)
    """
    values, finite, method = _prepare(scores, level, nonfinite, "Student t")
    n = len(values)
    mean, std = _moments(values)
    half = _t_quantile(n - 1, 0.5 + level / 2) * std / math.sqrt(n)
    return _interval(values, finite, mean, std, (mean - half, mean + half), level, method)


def _t_quantile(degrees: int, probability: float) -> float:
    import scipy.special  # noqa: PLC0415 - a tenth of the time of `import metakit`

    return float(scipy.special.stdtrit(degrees, probability))


@typed
def bootstrap(
    scores: Any,
    key: PRNGKey,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    nonfinite: Literal["propagate", "exclude"] = "propagate",
) -> Interval:
    r"""The mean of per-task scores with a bootstrap percentile interval.

    The ends are the $\tfrac{1 - \text{level}}{2}$ and $\tfrac{1 + \text{level}}{2}$ quantiles of the means of
    resamples, each of $n$ scores drawn with replacement. It supposes no shape of the distribution, and stays
    inside the range of the scores (an accuracy above 1 cannot come out).

    **Arguments:**

    - `scores`, `level`, `nonfinite`: as in `student_t`.
    - `key`: for the resampling.
    - `num_resamples`: at least 100; default 2000, which leaves the ends with an error of about 3 % of the
      width.

    **Returns:** an `Interval`.

    **Raises:** `ValueError` as `student_t`, and for fewer than 100 resamples.

    **Source:** Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, section 13.3. With few tasks it
    is too narrow by about $\sqrt{(n-1)/n}$, and by the difference of the normal from the t quantile.

    >>> import jax
    >>> interval = bootstrap([0.0, 0.5, 1.0, 1.0], jax.random.key(0))
    >>> 0.0 <= interval.low < interval.mean < interval.high <= 1.0
    True
    """
    if num_resamples < 100:
        raise ValueError(
            f"num_resamples must be at least 100 to estimate quantiles, got {num_resamples}; 2000 is usual."
        )
    values, finite, method = _prepare(scores, level, nonfinite, "bootstrap")
    mean, std = _moments(values)
    if np.isfinite(values).all():
        # Resampled as deviations in units of std, so that float32 loses nothing to a large mean.
        scale = std if std > 0 else 1.0
        deviations = jnp.asarray((values - mean) / scale, dtype=jnp.result_type(float))
        means = np.asarray(_resampled_means(deviations, key, num_resamples), np.float64)
        ends = mean + scale * np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
        low, high = np.clip(ends, values.min(), values.max()).tolist()  # never outside by a rounding error
    else:
        low = high = math.nan
    return _interval(values, finite, mean, std, (low, high), level, method)


@functools.partial(jax.jit, static_argnums=2)
def _resampled_means(values: Any, key: Any, num_resamples: int) -> Any:
    count = values.shape[0]

    def one(key):
        return jnp.mean(values[jax.random.randint(key, (count,), 0, count)])

    return jax.lax.map(one, jax.random.split(key, num_resamples), batch_size=16)


@typed
def paired_difference(
    first: Any,
    second: Any,
    *,
    level: float = 0.95,
    nonfinite: Literal["propagate", "exclude"] = "propagate",
) -> Interval:
    r"""The mean of `first - second` over the same tasks, with Student's t interval.

    $$d_t = a_t - b_t, \qquad \bar d \pm t_{n-1}\big(\tfrac{1 + \text{level}}{2}\big)\, \frac{s_d}{\sqrt n}$$

    Some tasks are hard for every learner. The differences do not contain that part, so their interval is far
    tighter than two separate ones, and two learners whose own intervals overlap may still differ clearly:
    look whether *this* interval contains 0.

    **Arguments:**

    - `first`, `second`: scores of two learners on the same tasks in the same order, `[tasks]` each; they are,
      if both came from `scores` with the same key and sampler.
    - `level`, `nonfinite`: as in `student_t`; a task counts as not finite if either score is.

    **Returns:** an `Interval` of the difference.

    **Raises:** `ValueError` where the two differ in length, and as `student_t`.

    >>> print(paired_difference([0.9, 0.7, 0.5], [0.8, 0.6, 0.3]))
    0.1333 [-0.01009, 0.2768] (95 %, Student t of paired differences, 3 tasks)
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"first and second must hold scores of the same tasks, got shapes {list(a.shape)} and "
            f"{list(b.shape)}. "
            "Evaluate both with the same key, sampler and num_tasks."
        )
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and counted
        difference = a - b
    interval = student_t(difference, level=level, nonfinite=nonfinite)
    return interval._replace(method=interval.method.replace("Student t", "Student t of paired differences"))


def _prepare(scores: Any, level: float, nonfinite: str, method: str) -> tuple[np.ndarray, np.ndarray, str]:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1:
        raise ValueError(f"scores must hold one number per task, [tasks], got shape {list(values.shape)}.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}.")
    finite = np.isfinite(values)
    if nonfinite == "exclude" and not finite.all():
        values, method = values[finite], f"{method} of the finite"
    if len(values) < 2:
        raise ValueError(
            f"an interval needs at least 2 {'finite ' if nonfinite == 'exclude' else ''}scores, got "
            f"{len(values)} of "
            f"{len(finite)}. Evaluate more tasks: 600 to 10,000 are usual."
        )
    return values, finite, method


def _moments(values: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return math.nan, math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _interval(
    values: np.ndarray,
    finite: np.ndarray,
    mean: float,
    std: float,
    ends: tuple[float, float],
    level: float,
    method: str,
) -> Interval:
    median = float(np.median(values)) if np.isfinite(values).all() else math.nan
    return Interval(mean, std, *ends, median, len(finite), int(np.sum(~finite)), level, method)
