"""Sine curves of varying amplitude and phase, and what can be known about them exactly."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._episode import Episode, Examples
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from ._numbers import as_range, check_counts, uniform


class Sinusoid(eqx.Module):
    r"""The distribution of sine curves; `sampler(key)` draws one task.

    $$y = A \sin(x - \varphi), \qquad A, \varphi, x \text{ uniform}$$

    Without noise. Pure, so it runs inside `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    **Arguments:**

    - `shot`: support points, at least 1; 10 by default, as Finn et al. train with (they test with 5, 10, 20).
    - `queries`: query points, at least 1; 10 by default.
    - `amplitude`: range of $A$; `(0.1, 5.0)` by default. (Some ports have 0.1 to 0.5, another task.)
    - `phase`: range of $\varphi$, radians; `(0, π)` by default.
    - `x`: range of the inputs, radians; `(-5, 5)` by default.

    Each range is a pair `(low, high)` and an array leaf: changing it compiles nothing again.

    **Returns** (of a call): an `Episode`, `x` and `y` both `[n, 1]` in the dtype of the ranges (JAX's default
    float).

    **Raises:** `ValueError` when a range is empty or not finite, or when `shot` or `queries` is below 1.

    >>> import jax, metakit as mk
    >>> tasks = mk.tasks.Sinusoid(shot=5, queries=20)
    >>> episode = tasks(jax.random.key(0))
    >>> episode.support.x.shape, episode.query.y.shape
    ((5, 1), (20, 1))

    **Source:** Finn et al., "Model-Agnostic Meta-Learning", 2017, section 5.1,
    https://arxiv.org/abs/1703.03400.
    """

    shot: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    amplitude: Float[Array, "2"]
    phase: Float[Array, "2"]
    x: Float[Array, "2"]

    def __init__(
        self,
        shot: int = 10,
        queries: int = 10,
        *,
        amplitude: Any = (0.1, 5.0),
        phase: Any = (0.0, math.pi),
        x: Any = (-5.0, 5.0),
    ):
        check_counts(shot, queries)
        self.shot = shot
        self.queries = queries
        self.amplitude = as_range(amplitude, "amplitude")
        self.phase = as_range(phase, "phase")
        self.x = as_range(x, "x")

    @typed
    def __call__(self, key: PRNGKey) -> Episode:
        amplitude_key, phase_key, x_key = jax.random.split(key, 3)
        amplitude = uniform(amplitude_key, self.amplitude, (1, 1))
        phase = uniform(phase_key, self.phase, (1, 1))
        x = uniform(x_key, self.x, (self.shot + self.queries, 1))
        y = amplitude * jnp.sin(x - phase)
        return Episode(Examples(x[: self.shot], y[: self.shot]), Examples(x[self.shot :], y[self.shot :]))


@typed
def sinusoid_zero_mse(tasks: Sinusoid) -> Scalar:
    r"""The mean squared error of always predicting 0, exactly.

    $$E[A^2]\, E[\sin^2(x - \varphi)] = \tfrac12 E[A^2]\, (1 - E[\cos 2x]\, E[\cos 2\varphi] - E[\sin 2x]\,
    E[\sin 2\varphi])$$

    **Arguments:** `tasks`, a `Sinusoid`.

    **Returns:** a scalar; 4.2517 with the default ranges.

    >>> import metakit as mk
    >>> f"{mk.tasks.sinusoid_zero_mse(mk.tasks.Sinusoid()):.4f}"
    '4.2517'
    """
    low, high = tasks.amplitude[0], tasks.amplitude[1]
    square = (high * high + high * low + low * low) / 3
    cos_x, sin_x = _wave_mean(tasks.x, 2)
    cos_phase, sin_phase = _wave_mean(tasks.phase, 2)
    return square * (1 - cos_x * cos_phase - sin_x * sin_phase) / 2


@typed
def sinusoid_nonadaptive(tasks: Sinusoid, x: Float[Array, "n 1"]) -> Float[Array, "n 1"]:
    r"""The best prediction that does not look at the support set: the mean curve of the distribution.

    $$f^*(x) = E[A]\, (E[\cos\varphi] \sin x - E[\sin\varphi] \cos x)$$

    With the default ranges it is $-(5.1/\pi) \cos x$. A learner whose loss before adaptation is near that of
    this curve (`sinusoid_nonadaptive_mse`) has found the mean; only adapting brings it below.

    **Arguments:** `tasks`, a `Sinusoid`; `x`, the inputs, `[n, 1]`, radians.

    **Returns:** predictions `[n, 1]`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> f"{mk.tasks.sinusoid_nonadaptive(mk.tasks.Sinusoid(), jnp.zeros((1, 1)))[0, 0]:.4f}"
    '-1.6234'
    """
    amplitude = (tasks.amplitude[0] + tasks.amplitude[1]) / 2
    cos_phase, sin_phase = _wave_mean(tasks.phase, 1)
    return amplitude * (cos_phase * jnp.sin(x) - sin_phase * jnp.cos(x))


@typed
def sinusoid_nonadaptive_mse(tasks: Sinusoid) -> Scalar:
    r"""The mean squared error of `sinusoid_nonadaptive`, exactly.

    No learner that ignores the support set does better.

    $$E[y^2] - E[f^*(x)^2]$$

    **Arguments:** `tasks`, a `Sinusoid`.

    **Returns:** a scalar; 3.0057 with the default ranges.

    >>> import metakit as mk
    >>> f"{mk.tasks.sinusoid_nonadaptive_mse(mk.tasks.Sinusoid()):.4f}"
    '3.0057'
    """
    amplitude = (tasks.amplitude[0] + tasks.amplitude[1]) / 2
    cos_phase, sin_phase = _wave_mean(tasks.phase, 1)
    cos_x, sin_x = _wave_mean(tasks.x, 2)
    # sin^2 = (1 - cos 2x)/2, cos^2 = (1 + cos 2x)/2, sin cos = sin(2x)/2.
    explained = (
        cos_phase * cos_phase * (1 - cos_x) + sin_phase * sin_phase * (1 + cos_x) - 2 * cos_phase * sin_phase * sin_x
    ) / 2
    return sinusoid_zero_mse(tasks) - amplitude * amplitude * explained


def _wave_mean(ends: Float[Array, "2"], frequency: int) -> tuple[Scalar, Scalar]:
    r"""$E[\cos ku]$ and $E[\sin ku]$ for $u$ uniform in a range of centre $m$ and half width $r$.

    $E[e^{iku}] = e^{ikm} \sin(kr)/(kr)$, which is also right for a range of a single number.
    """
    centre, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    damping = jnp.sinc(frequency * half / math.pi)
    return jnp.cos(frequency * centre) * damping, jnp.sin(frequency * centre) * damping
