"""Straight lines under a Gaussian prior: the task whose every answer is known."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metakit._episode import Episode, Examples
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from ._numbers import as_numbers, as_range, check_counts, moments, uniform


class LinearRegression(eqx.Module):
    r"""The distribution of noisy lines; `sampler(key)` draws one task.

    $$y = \phi(x)^\top w + \varepsilon, \quad \phi(x) = (x, 1), \quad w = (\text{slope}, \text{intercept})
    \sim N(\mu, \Sigma_w), \quad \varepsilon \sim N(0, \sigma^2)$$

    Pure, so it runs inside `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    **Arguments:**

    - `shot`: support points, at least 1; 5 by default.
    - `queries`: query points, at least 1; 10 by default. Their targets are noisy too.
    - `std`: standard deviations of slope and intercept, independent; `(1, 1)` by default.
    - `covariance`: $\Sigma_w$, `[2, 2]`, instead of `std` where the two depend on each other.
    - `mean`: $\mu$, of slope and intercept; `(0, 0)` by default.
    - `x`: range of the inputs, which are uniform; `(-1, 1)` by default.
    - `noise`: $\sigma$, at least 0; 0 by default.

    All numbers are array leaves: changing one compiles nothing again.

    **Returns** (of a call): an `Episode`, `x` and `y` both `[n, 1]` in JAX's default float dtype.

    **Raises:** `ValueError` when the range is empty or not finite, when both `std` and `covariance` are
    given, when `covariance` is not a covariance matrix, when `noise` or a `std` is negative, or when `shot`
    or `queries` is below 1.

    >>> import jax, metakit as mk
    >>> tasks = mk.tasks.LinearRegression(shot=5, queries=20, noise=0.1)
    >>> episode = tasks(jax.random.key(0))
    >>> episode.support.x.shape, episode.query.y.shape
    ((5, 1), (20, 1))
    """

    shot: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    mean: Float[Array, "2"]
    covariance: Float[Array, "2 2"]
    x: Float[Array, "2"]
    noise: Float[Array, ""]

    def __init__(
        self,
        shot: int = 5,
        queries: int = 10,
        *,
        std: Any = None,
        covariance: Any = None,
        mean: Any = (0.0, 0.0),
        x: Any = (-1.0, 1.0),
        noise: Any = 0.0,
    ):
        check_counts(shot, queries)
        if std is not None and covariance is not None:
            raise ValueError("std and covariance describe the same thing; give one of them, got both.")
        if covariance is None:
            std = (1.0, 1.0) if std is None else std
            expected = "two standard deviations, at least 0"
            std = as_numbers(std, "std", (2,), lambda s: (s >= 0).all(), expected)
            covariance = jnp.diag(std * std)
        self.shot = shot
        self.queries = queries
        self.mean = as_numbers(mean, "mean", (2,), np.size, "two finite numbers")
        self.covariance = as_numbers(
            covariance,
            "covariance",
            (2, 2),
            _is_covariance,
            "a symmetric 2x2 matrix without negative eigenvalues (such as L @ L.T)",
        )
        self.x = as_range(x, "x")
        self.noise = as_numbers(noise, "noise", (), lambda s: s >= 0, "one standard deviation, at least 0")

    @typed
    def __call__(self, key: PRNGKey) -> Episode:
        weight_key, x_key, noise_key = jax.random.split(key, 3)
        w = self.mean + _square_root(self.covariance) @ jax.random.normal(weight_key, (2,), self.mean.dtype)
        x = uniform(x_key, self.x, (self.shot + self.queries, 1))
        noise = self.noise * jax.random.normal(noise_key, x.shape, x.dtype)
        y = w[0] * x + w[1] + noise
        return Episode(Examples(x[: self.shot], y[: self.shot]), Examples(x[self.shot :], y[self.shot :]))


class LinearPosterior(NamedTuple):
    """What the support set says about (slope, intercept): `mean` `[2]` and `covariance` `[2, 2]`.

    >>> import jax, metakit as mk
    >>> tasks = mk.tasks.LinearRegression(noise=0.1)
    >>> mk.tasks.linear_posterior(tasks, tasks(jax.random.key(0)).support).covariance.shape
    (2, 2)
    """

    mean: Float[Array, "2"]
    covariance: Float[Array, "2 2"]


@typed
def linear_posterior(tasks: LinearRegression, support: Examples) -> LinearPosterior:
    r"""The exact posterior of (slope, intercept); its mean is the best prediction in mean square there is.

    $$\Sigma = \sigma^2 (\Sigma_w \Phi^\top \Phi + \sigma^2 I)^{-1} \Sigma_w, \qquad
    \hat w = \mu + (\Sigma_w \Phi^\top \Phi + \sigma^2 I)^{-1} \Sigma_w \Phi^\top (y - \Phi \mu)$$

    That is $(\Phi^\top \Phi / \sigma^2 + \Sigma_w^{-1})^{-1}$ in a form that also holds without noise, and
    for a prior that fixes slope or intercept. (Without noise *and* with such a prior, or with all inputs
    equal, more than one point says the same thing twice and the result is NaN.)

    **Arguments:** `tasks`, a `LinearRegression`; `support`, with `x` and `y` `[n, 1]`.

    **Returns:** a `LinearPosterior(mean, covariance)`. Predict with `mean[0] * x + mean[1]`.

    **Raises:** `ValueError` when `support` is not `[n, 1]`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [3.0]]))
    >>> mk.tasks.linear_posterior(mk.tasks.LinearRegression(), support).mean.tolist()
    [2.0, 1.0]

    **Source:** Bishop, "Pattern Recognition and Machine Learning", 2006, equations 3.50 and 3.51, multiplied
    by $\Sigma_w$.
    """
    features = _features(support)
    if support.y.shape != support.x.shape:
        raise ValueError(f"support.y must be [n, 1] like support.x, got {list(support.y.shape)}.")
    gain = _gain(tasks, features)
    residual = support.y[:, 0] - features @ tasks.mean
    return LinearPosterior(tasks.mean + gain @ residual, _posterior_covariance(tasks, features, gain))


@typed
def linear_bayes_excess(tasks: LinearRegression, support: Examples, *, half: bool = False) -> Scalar:
    r"""By how much the exact posterior mean misses, above the noise that nobody can predict.

    $$E\big[(\phi(x)^\top (\hat w - w))^2\big] = \mathrm{tr}(\Sigma_x \Sigma), \qquad \Sigma_x = E[\phi(x)
    \phi(x)^\top]$$

    Exact for the support inputs given (their targets do not matter); average it over episodes for the
    distribution's own figure, which no learner beats.

    **Arguments:**

    - `tasks`: a `LinearRegression`.
    - `support`: with `x` `[n, 1]`.
    - `half`: count $\tfrac12(\hat y - y)^2$ as textbooks do; by default $(\hat y - y)^2$, as
      `losses.squared_error` and `metrics.mean_squared_error`.

    **Returns:** a scalar; add `tasks.noise ** 2` (half of it with `half`) for the error on noisy query
    targets.

    **Raises:** `ValueError` when `support.x` is not `[n, 1]`.

    >>> import jax, metakit as mk
    >>> tasks = mk.tasks.LinearRegression()
    >>> support = tasks(jax.random.key(0)).support
    >>> bool(mk.tasks.linear_bayes_excess(tasks, support) < 1e-6)  # points without noise determine a line
    True
    """
    features = _features(support)
    posterior = _posterior_covariance(tasks, features, _gain(tasks, features))
    return _scale(half) * jnp.trace(_second_moment(tasks) @ posterior)


@typed
def linear_one_step_rate(tasks: LinearRegression, *, half: bool = False) -> Scalar:
    r"""The best inner rate for one gradient step from the prior mean: where a learned rate must arrive.

    $$\alpha^* = \frac{\mathrm{tr}(\Sigma_x^2 \Sigma_w)}{\mathrm{tr}(E[G \Sigma_x G] \Sigma_w) +
    \sigma^2 \mathrm{tr}(\Sigma_x^2) / K}, \qquad G = \Phi^\top \Phi / K, \quad
    E[G \Sigma_x G] = \tfrac1K E[\phi \phi^\top \Sigma_x \phi \phi^\top] + \tfrac{K-1}{K} \Sigma_x^3$$

    for the step $\theta - \alpha \nabla \tfrac1{2K} \lVert \Phi \theta - y \rVert^2$; half as much where the
    loss has no $\tfrac12$. The expectation over the $K$ support inputs is exact, through their moments.

    **Arguments:**

    - `tasks`: a `LinearRegression`.
    - `half`: the inner loss is $\tfrac12(\hat y - y)^2$; by default $(\hat y - y)^2$, as
      `losses.squared_error`.

    **Returns:** a scalar.

    >>> import metakit as mk
    >>> tasks = mk.tasks.LinearRegression(shot=5)
    >>> f"{mk.tasks.linear_one_step_rate(tasks):.6f} {mk.tasks.linear_one_step_rate(tasks, half=True):.6f}"
    '0.490838 0.981675'
    """
    slope, curvature = _one_step_terms(tasks)
    return slope / curvature / (2 * _scale(half))


@typed
def linear_one_step_excess(tasks: LinearRegression, rate: Any = None, *, half: bool = False) -> Scalar:
    r"""By how much one gradient step from the prior mean misses, above the noise that nobody can predict.

    $$E\big[(\phi(x)^\top (\theta' - w))^2\big] = \mathrm{tr}(\Sigma_x \Sigma_w) - 2 \alpha\,
    \mathrm{tr}(\Sigma_x^2 \Sigma_w) + \alpha^2 \big(\mathrm{tr}(E[G \Sigma_x G] \Sigma_w) + \sigma^2
    \mathrm{tr}(\Sigma_x^2) / K\big)$$

    **Arguments:**

    - `tasks`: a `LinearRegression`.
    - `rate`: of the inner step, a scalar; by default the best one, `linear_one_step_rate(tasks, half=half)`.
    - `half`: both the inner loss and the error counted are $\tfrac12(\hat y - y)^2$; by default $(\hat y -
      y)^2$.

    **Returns:** a scalar.

    >>> import metakit as mk
    >>> f"{mk.tasks.linear_one_step_excess(mk.tasks.LinearRegression(shot=5), half=True):.6f}"
    '0.121291'
    """
    rate = linear_one_step_rate(tasks, half=half) if rate is None else rate
    rate = as_numbers(rate, "rate", (), np.size, "one finite number")
    slope, curvature = _one_step_terms(tasks)
    # In the formula the step is the gradient of half the square.
    alpha = 2 * _scale(half) * rate
    before = jnp.trace(_second_moment(tasks) @ tasks.covariance)
    return _scale(half) * (before - 2 * alpha * slope + alpha * alpha * curvature)


def _scale(half: bool) -> float:
    return 0.5 if half else 1.0


def _second_moment(tasks: LinearRegression) -> Float[Array, "2 2"]:
    one, first, second = moments(tasks.x, 2)
    return jnp.stack([jnp.stack([second, first]), jnp.stack([first, one])])


def _one_step_terms(tasks: LinearRegression) -> tuple[Scalar, Scalar]:
    one, m1, m2, m3, m4 = moments(tasks.x, 4)
    sigma, shot = _second_moment(tasks), tasks.shot
    # E[(phi' Sigma phi) phi phi'] with phi' Sigma phi = m2 x^2 + 2 m1 x + 1.
    fourth = [m2 * m4 + 2 * m1 * m3 + m2, m2 * m3 + 2 * m1 * m2 + m1, m2 * m2 + 2 * m1 * m1 + one]
    fourth = jnp.stack([jnp.stack(fourth[:2]), jnp.stack(fourth[1:])])
    squared = sigma @ sigma
    expected = fourth / shot + (shot - 1) / shot * (squared @ sigma)
    noise = tasks.noise * tasks.noise * jnp.trace(squared) / shot
    return jnp.trace(squared @ tasks.covariance), jnp.trace(expected @ tasks.covariance) + noise


def _features(support: Examples) -> Float[Array, "n 2"]:
    if support.x.ndim != 2 or support.x.shape[1] != 1:
        raise ValueError(
            f"support.x must be [n, 1], got {list(support.x.shape)}. Use eqx.filter_vmap over a batch of tasks."
        )
    return jnp.concatenate([support.x, jnp.ones_like(support.x)], axis=1)


def _gain(tasks: LinearRegression, features: Float[Array, "n 2"]) -> Float[Array, "2 n"]:
    spread, variance = tasks.covariance @ features.T, tasks.noise * tasks.noise
    if features.shape[0] == 1:
        # One point does not determine a line, so without noise the form below is singular; this one is not.
        return spread / (features @ spread + variance)
    system = spread @ features + variance * jnp.eye(2, dtype=features.dtype)
    (a, b), (c, d) = system
    # Cramer's rule: for 2x2 as exact as a factorisation, and cheaper to compile and to map over tasks.
    adjugate = jnp.stack([jnp.stack([d, -b]), jnp.stack([-c, a])])
    return adjugate @ spread / (a * d - b * c)


def _posterior_covariance(
    tasks: LinearRegression, features: Float[Array, "n 2"], gain: Float[Array, "2 n"]
) -> Float[Array, "2 2"]:
    # Joseph's form: a sum of two squares, which rounding cannot make asymmetric or negative.
    kept = jnp.eye(2, dtype=features.dtype) - gain @ features
    return kept @ tasks.covariance @ kept.T + tasks.noise * tasks.noise * (gain @ gain.T)


def _square_root(covariance: Float[Array, "2 2"]) -> Float[Array, "2 2"]:
    """Cholesky by hand, since the library's returns NaN for a prior that fixes slope or intercept."""
    a, b, d = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    first = jnp.sqrt(a)
    below = jnp.where(a > 0, b / jnp.where(a > 0, first, jnp.ones_like(first)), jnp.zeros_like(b))
    last = jnp.sqrt(jnp.maximum(d - below * below, jnp.zeros_like(d)))
    return jnp.stack([jnp.stack([first, jnp.zeros_like(a)]), jnp.stack([below, last])])


def _is_covariance(matrix: np.ndarray) -> bool:
    # Relative to the matrix, since a product L @ L.T is symmetric and positive only up to rounding.
    slack = 1e-6 * np.abs(matrix).max()
    return bool(np.abs(matrix - matrix.T).max() <= slack and np.linalg.eigvalsh(matrix).min() >= -slack)
