"""Normalisation without state: whose statistics are used is a policy, not a side effect."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from metakit._hyperparameter import Constant
from metakit._typecheck import typed


class Statistics(Constant):
    """Mean and variance of each channel, held as constants: gradients flow into them, training does not move them.

    **Arguments:** `mean` and `variance`, `[c]` each.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.trainable(mk.nn.Statistics(jnp.zeros(2), jnp.ones(2))).mean
    False
    """

    mean: Float[Array, " c"]
    variance: Float[Array, " c"]


@jax.custom_jvp
def _moments(rows: Array) -> tuple[Array, Array]:
    """Mean and variance of each column."""
    mean = jnp.mean(rows, axis=0)
    # Two passes: E[x²] - E[x]² in one pass loses the variance where the mean is large.
    return mean, jnp.mean(jnp.square(rows - mean[None]), axis=0)


@_moments.defjvp
def _moments_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    (rows,), (d_rows,) = primals, tangents
    mean, variance = _moments(rows)
    d_mean = jnp.mean(d_rows, axis=0)
    # Not 2 E[(x - μ) dx]: XLA would write x - μ to memory, to share it with the variance, and read it twice; and the
    # derivative through that μ, which is zero, would cost two more passes.
    return (mean, variance), (d_mean, 2 * (jnp.mean(rows * d_rows, axis=0) - mean * d_mean))


class BatchStatNorm(eqx.Module):
    r"""Batch normalisation with the statistics of the current batch and no running state.

    $$y = \gamma\,\frac{x - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}} + \beta$$

    **Arguments:**

    - `channels`: size of the channel axis (axis 1 of a call's `x`).
    - `eps`: added to the variance; 1e-5 by default, 1e-3 in MAML's published networks.
    - `use_scale`, `use_bias`: whether there is a $\gamma$ (starts at 1) and a $\beta$ (starts at 0).
    - `statistics`: a mean and a variance to use instead of the batch's; default `None`.

    **Returns** (of a call): the shape of `x`.

    Statistics of a query batch are shared between its examples (*transductive*). `freeze_statistics` gives
    the inductive form. The variance is the biased one, as in training mode everywhere.

    **Raises:** `ValueError` when `x` is not `[n, channels, ...]`.

    **Source:** Ioffe and Szegedy 2015, algorithm 1, https://arxiv.org/abs/1502.03167

    >>> import jax.numpy as jnp, metakit as mk
    >>> float(jnp.abs(mk.nn.BatchStatNorm(2)(jnp.arange(12.0).reshape(6, 2)).mean()) < 1e-6)
    1.0
    """

    scale: Float[Array, " c"] | None
    bias: Float[Array, " c"] | None
    statistics: Statistics | None
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        use_scale: bool = True,
        use_bias: bool = True,
        statistics: Statistics | None = None,
    ):
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        self.scale = jnp.ones((channels,), dtype) if use_scale else None
        self.bias = jnp.zeros((channels,), dtype) if use_bias else None
        self.statistics = statistics
        self.channels = channels
        self.eps = eps

    @typed
    def __call__(self, x: Float[Array, "n c *space"]) -> Float[Array, "n c *space"]:
        return jnp.moveaxis(self.channels_last(jnp.moveaxis(x, 1, -1)), -1, 1)

    def channels_last(self, x: Array) -> Array:
        """The same on `[n, *space, c]`, the layout inside the convolutional networks."""
        if x.shape[-1] != self.channels:
            raise ValueError(f"this BatchStatNorm has {self.channels} channels, got {x.shape[-1]}.")
        mean, variance = self.moments(x)
        factor = lax.rsqrt(variance + jnp.asarray(self.eps, x.dtype))
        factor = factor if self.scale is None else factor * self.scale
        shift = -mean * factor
        shift = shift if self.bias is None else shift + self.bias
        # One multiply-add over the activations instead of four passes.
        lead = (1,) * (x.ndim - 1)
        return x * factor.reshape(*lead, -1) + shift.reshape(*lead, -1)

    def moments(self, x: Array) -> tuple[Array, Array]:
        if self.statistics is not None:
            return self.statistics.mean, self.statistics.variance
        return _moments(x.reshape(-1, x.shape[-1]))


class PerStepNorm(eqx.Module):
    """Batch-stat normalisation with a scale and a bias for every inner step (MAML++).

    **Arguments:**

    - `num_steps`: how many sets of parameters: one for each inner step. The query is judged with the last.
    - `channels`, `eps`: as in `BatchStatNorm`.

    A call uses the parameters of step 0; `at_step(model, i)` picks another step's.

    **Source:** Antoniou et al. 2019, *How to Train Your MAML*, section 4, https://arxiv.org/abs/1810.09502

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.nn.PerStepNorm(6, 2)(jnp.ones((3, 2))).shape
    (3, 2)
    """

    scale: Float[Array, "steps c"]
    bias: Float[Array, "steps c"]
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, num_steps: int, channels: int, *, eps: float = 1e-5):
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        self.scale = jnp.ones((num_steps, channels), dtype)
        self.bias = jnp.zeros((num_steps, channels), dtype)
        self.channels = channels
        self.eps = eps

    @typed
    def __call__(self, x: Float[Array, "n c *space"]) -> Float[Array, "n c *space"]:
        return self.of_step(jnp.zeros((), jnp.int32))(x)

    def channels_last(self, x: Array) -> Array:
        return self.of_step(jnp.zeros((), jnp.int32)).channels_last(x)

    def of_step(self, step: Array) -> BatchStatNorm:
        norm = BatchStatNorm(self.channels, eps=self.eps)
        # Past the last step its parameters go on being used, so a longer adaptation at test time is defined.
        step = jnp.clip(step, 0, self.scale.shape[0] - 1)
        return eqx.tree_at(lambda n: (n.scale, n.bias), norm, (self.scale[step], self.bias[step]))


class GroupNorm(eqx.Module):
    r"""Normalisation over groups of channels of one example: no example sees another.

    **Arguments:**

    - `groups`: number of groups; divides `channels`.
    - `channels`: size of axis 1.
    - `eps`: added to the variance, default 1e-5.

    **Returns** (of a call): the shape of `x`.

    **Raises:** `ValueError` when `groups` does not divide `channels`.

    **Source:** Wu and He 2018, equation 1, https://arxiv.org/abs/1803.08494

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.nn.GroupNorm(2, 4)(jnp.ones((3, 4, 5, 5))).shape
    (3, 4, 5, 5)
    """

    scale: Float[Array, " c"]
    bias: Float[Array, " c"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-5):
        if groups < 1 or channels % groups:
            raise ValueError(f"groups must divide channels={channels}, got {groups}.")
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        self.scale, self.bias = jnp.ones((channels,), dtype), jnp.zeros((channels,), dtype)
        self.groups, self.eps = groups, eps

    @typed
    def __call__(self, x: Float[Array, "n c *space"]) -> Float[Array, "n c *space"]:
        return jnp.moveaxis(self.channels_last(jnp.moveaxis(x, 1, -1)), -1, 1)

    def channels_last(self, x: Array) -> Array:
        n, channels = x.shape[0], x.shape[-1]
        if channels != self.scale.shape[0]:
            raise ValueError(f"this GroupNorm has {self.scale.shape[0]} channels, got {channels}.")
        grouped = x.reshape(n, -1, self.groups, channels // self.groups)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 3), keepdims=True)
        y = ((grouped - mean) * lax.rsqrt(variance + jnp.asarray(self.eps, x.dtype))).reshape(x.shape)
        lead = (1,) * (x.ndim - 1)
        return y * self.scale.reshape(*lead, -1) + self.bias.reshape(*lead, -1)


def _is(kind: type) -> Any:
    return lambda node: isinstance(node, kind)


def at_step(model: Any, step: int | Int[Array, ""]) -> Any:
    """The model whose `PerStepNorm` layers use the parameters of one inner step.

    **Arguments:** `model`, any PyTree; `step`, an index from 0 (may be traced; past the end, the last is
    used).

    **Returns:** the model with each `PerStepNorm` replaced by that step's `BatchStatNorm`; others pass
    through.

    >>> import jax.numpy as jnp, metakit as mk
    >>> type(mk.nn.at_step(mk.nn.PerStepNorm(6, 2), 3)).__name__
    'BatchStatNorm'
    """
    index = jnp.asarray(step, jnp.int32)
    return jax.tree.map(
        lambda node: node.of_step(index) if isinstance(node, PerStepNorm) else node,
        model,
        is_leaf=_is(PerStepNorm),
    )
