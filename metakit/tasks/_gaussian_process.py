"""Curves drawn from a Gaussian process, and the exact posterior that no learner's prediction beats."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from metakit._episode import Episode, Examples, MaskedExamples
from metakit._normal import Normal
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from ._numbers import as_numbers, as_range, check_counts, uniform


class GaussianProcess(eqx.Module):
    r"""A Gaussian process with a squared-exponential kernel, observed with noise.

    $$k(x, x') = s^2 \exp\Big(-\frac{\lVert x - x'\rVert^2}{2 \ell^2}\Big) + \sigma^2 [x = x']$$

    **Arguments:** `length_scale`, $\ell$; `scale`, $s$; `noise`, $\sigma$; scalars above 0.

    >>> import jax, metakit as mk
    >>> process = mk.tasks.gp_kernel(mk.tasks.GaussianProcessCurves(), jax.random.key(0))
    >>> round(float(process.length_scale), 3)
    0.4
    """

    length_scale: Scalar
    scale: Scalar
    noise: Scalar


class GaussianProcessCurves(eqx.Module):
    r"""The distribution of curves from a Gaussian process; `sampler(key)` draws one task.

    $$f \sim \mathrm{GP}(0, k), \quad k(x, x') = s^2 \exp\Big(-\frac{(x - x')^2}{2 \ell^2}\Big), \quad
    y = f(x) + \varepsilon, \quad \varepsilon \sim N(0, \sigma^2), \quad x, \ell, s \text{ uniform}$$

    Pure, so it runs inside `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    **Arguments:**

    - `shot`: support points. A pair `(low, high)` draws their number uniformly, both ends included; so that every
      task has one shape, the support is then a `MaskedExamples` of `high` points, zero where they are padding.
      One number gives plain `Examples`, which every learner of real targets takes. By default `(3, 9)`.
    - `queries`: new points to be judged on, always as many; 9 by default. (The published tasks draw their
      number, too. That only weighs tasks against each other: a point's own distribution is the same.)
    - `length_scale`: range of $\ell$; `(0.4, 0.4)` by default.
    - `scale`: range of $s$; `(1, 1)` by default.
    - `x`: range of the inputs; `(-2, 2)` by default.
    - `noise`: $\sigma$, above 0; 0.02 by default. It also keeps the covariance matrix invertible: in 32 bits, stay
      above a thousandth of the scale.

    The defaults are the published Conditional Neural Process's; those of the (attentive) Neural Process are
    `shot=(3, 49)`, `length_scale=(0.1, 0.6)` and `scale=(0.1, 1.0)`. All numbers but the counts are array leaves:
    changing one compiles nothing again.

    **Returns** (of a call): an `Episode`, `x` and `y` both `[n, 1]` in JAX's default float dtype.

    **Raises:** `ValueError` when a range is empty, not finite or (but for `x`) not above 0, when `noise` is not
    above 0, or when `shot` or `queries` is below 1.

    >>> import jax, metakit as mk
    >>> episode = mk.tasks.GaussianProcessCurves(shot=5, queries=20)(jax.random.key(0))
    >>> episode.support.x.shape, episode.query.y.shape
    ((5, 1), (20, 1))
    >>> support = mk.tasks.GaussianProcessCurves(shot=(3, 9))(jax.random.key(0)).support
    >>> support.x.shape, support.mask.shape
    ((9, 1), (9,))

    **Source:** Garnelo et al., "Conditional Neural Processes", 2018, section 4.1, https://arxiv.org/abs/1807.01613;
    Kim et al., "Attentive Neural Processes", 2019, section 4, https://arxiv.org/abs/1901.05761; the numbers are those
    of their notebooks, https://github.com/google-deepmind/neural-processes.
    """

    shot: int | tuple[int, int] = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    length_scale: Float[Array, "2"]
    scale: Float[Array, "2"]
    x: Float[Array, "2"]
    noise: Scalar

    def __init__(
        self,
        shot: int | tuple[int, int] = (3, 9),
        queries: int = 9,
        *,
        length_scale: Any = (0.4, 0.4),
        scale: Any = (1.0, 1.0),
        x: Any = (-2.0, 2.0),
        noise: Any = 0.02,
    ):
        low, high = shot if isinstance(shot, tuple) else (shot, shot)
        check_counts(low, queries)
        if high < low:
            raise ValueError(f"shot must be a number, or a pair (low, high) with low <= high, got {shot}.")
        self.shot = shot
        self.queries = queries
        self.length_scale = _as_positive_range(length_scale, "length_scale")
        self.scale = _as_positive_range(scale, "scale")
        self.x = as_range(x, "x")
        self.noise = as_numbers(noise, "noise", (), lambda s: s > 0, "one standard deviation above 0")

    @typed
    def __call__(self, key: PRNGKey) -> Episode:
        # `gp_kernel` repeats the first of these draws; the others must not depend on it.
        process = gp_kernel(self, key)
        _, number_key, x_key, y_key = jax.random.split(key, 4)
        most = self.shot[1] if isinstance(self.shot, tuple) else self.shot
        x = uniform(x_key, self.x, (most + self.queries, 1))
        root = jnp.linalg.cholesky(_covariance(process, x, x) + _noise(process, x))
        y = root @ jax.random.normal(y_key, x.shape, x.dtype)
        query = Examples(x[most:], y[most:])
        if not isinstance(self.shot, tuple):
            return Episode(Examples(x[:most], y[:most]), query)
        number = jax.random.randint(number_key, (), self.shot[0], most + 1)
        mask = jnp.arange(most) < number
        return Episode(MaskedExamples(_zero_unless(mask, x[:most]), _zero_unless(mask, y[:most]), mask), query)


@typed
def gp_kernel(tasks: GaussianProcessCurves, key: PRNGKey) -> GaussianProcess:
    """The process that the curve of `tasks(key)` is drawn from.

    **Arguments:** `tasks`, a `GaussianProcessCurves`; `key`, the key of the task. Where both ranges of `tasks` are
    single numbers, any key gives the same process.

    **Returns:** a `GaussianProcess` for `gp_posterior`. A learner is not told length scale and scale, so where
    they vary from task to task, the posterior that knows them bounds every learner without being attainable.

    >>> import jax, metakit as mk
    >>> tasks = mk.tasks.GaussianProcessCurves(length_scale=(0.1, 0.6))
    >>> process = mk.tasks.gp_kernel(tasks, jax.random.key(0))
    >>> bool(0.1 <= process.length_scale <= 0.6)
    True
    """
    length_key, scale_key = jax.random.split(jax.random.split(key, 4)[0])
    return GaussianProcess(
        uniform(length_key, tasks.length_scale, ()), uniform(scale_key, tasks.scale, ()), tasks.noise
    )


@typed
def gp_posterior(
    process: GaussianProcess,
    support: Examples | MaskedExamples,
    x: Float[Array, "query d"],
    *,
    min_scale: float = 0.0,
) -> Normal:
    r"""The exact distribution of new targets, each on its own, given the support set.

    $$\mu(x) = k(x)^\top K^{-1} y, \qquad \sigma^2(x) = s^2 + \sigma^2 - k(x)^\top K^{-1} k(x), \qquad
    K_{ij} = k(x_i, x_j)$$

    Its `mk.metrics.log_density` is the best that predictions of one target at a time reach in expectation: with the
    default `GaussianProcessCurves`, -0.091 nats per new target, and -0.200 with `min_scale=0.1`.

    **Arguments:**

    - `process`: from `gp_kernel`.
    - `support`: `x` `[n, d]` and `y` `[n, out]`, the columns of `y` being independent curves; may be masked.
    - `x`: where to predict, `[query, d]`.
    - `min_scale`: raise every standard deviation to at least this. A learner that cannot predict a smaller one (the
      published neural processes: 0.1) is bounded by *this* prediction, the best of its kind.

    **Returns:** a `mk.Normal` of shape `[query, out]`; its noise is that of an observation.

    **Raises:** `ValueError` when `support.x` or `support.y` is no matrix, or `x` has another number of columns.

    >>> import jax.numpy as jnp, metakit as mk
    >>> process = mk.tasks.GaussianProcess(jnp.asarray(1.0), jnp.asarray(1.0), jnp.asarray(0.1))
    >>> far = gp_posterior(process, mk.Examples(jnp.zeros((1, 1)), jnp.ones((1, 1))), jnp.array([[100.0]]))
    >>> far.mean.tolist(), round(float(far.scale[0, 0]) ** 2, 4)
    ([[0.0]], 1.01)

    **Source:** Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, equations 2.23 and 2.24 and
    algorithm 2.1, http://gaussianprocess.org/gpml/.
    """
    if support.x.ndim != 2 or support.y.ndim != 2 or support.x.shape[1] != x.shape[1]:
        raise ValueError(
            f"support.x and support.y must be [n, d] and [n, out] and x [query, d], got {list(support.x.shape)}, "
            f"{list(support.y.shape)} and {list(x.shape)}. Use eqx.filter_vmap over a batch of tasks."
        )
    covariance = _covariance(process, support.x, support.x) + _noise(process, support.x)
    cross, y = _covariance(process, support.x, x), support.y
    if isinstance(support, MaskedExamples):
        # A point of padding becomes one of variance 1 that is independent of everything, observed at its mean.
        both = support.mask[:, None] & support.mask[None, :]
        covariance = jnp.where(both, covariance, jnp.eye(len(y), dtype=covariance.dtype))
        cross, y = _zero_unless(support.mask, cross), _zero_unless(support.mask, y)
    root = jnp.linalg.cholesky(covariance)
    cross = jax.scipy.linalg.solve_triangular(root, cross, lower=True)
    mean = cross.T @ jax.scipy.linalg.solve_triangular(root, y, lower=True)
    noise = process.noise * process.noise
    # Rounding must not bring the variance of an observation below that of its noise.
    variance = noise + jnp.maximum(process.scale * process.scale - jnp.sum(cross * cross, axis=0), 0)
    scale = jnp.maximum(jnp.sqrt(variance), jnp.asarray(min_scale, variance.dtype))
    return Normal(mean, jnp.broadcast_to(scale[:, None], mean.shape))


def _covariance(process: GaussianProcess, a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    squares = jnp.sum(jnp.square((a[:, None] - b[None, :]) / process.length_scale), axis=-1)
    return process.scale * process.scale * jnp.exp(-0.5 * squares)


def _noise(process: GaussianProcess, x: Float[Array, "n d"]) -> Float[Array, "n n"]:
    return process.noise * process.noise * jnp.eye(x.shape[0], dtype=x.dtype)


def _zero_unless(mask: Bool[Array, " n"], rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return jnp.where(mask[:, None], rows, jnp.zeros_like(rows))


def _as_positive_range(value: Any, name: str) -> Float[Array, "2"]:
    expected = "a range (low, high) of finite numbers with 0 < low <= high"
    return as_numbers(value, name, (2,), lambda ends: np.logical_and(ends[0] > 0, ends[0] <= ends[1]), expected)
