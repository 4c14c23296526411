"""Independent normal distributions, the prediction of a learner that says how sure it is."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._typecheck import typed
from ._types import PRNGKey


class Normal(eqx.Module):
    r"""Independent normal distributions, one for each entry.

    $$p(y) = \prod_j N(y_j; \mu_j, \sigma_j^2)$$

    What `predict` returns where a learner of real targets also says how sure it is: `outputs.mean` is the `[n,
    *out]` that other learners return. It has their `shape` and `dtype`, `mk.metrics.mean_squared_error` reads its
    mean, and `mk.metrics.log_density` scores all of it.

    **Arguments:**

    - `mean`: $\mu$, of any shape.
    - `scale`: $\sigma$, a standard deviation above 0, of the same shape and dtype.

    **Raises:** `ValueError` when the two differ in shape or dtype.

    >>> import jax.numpy as jnp, metakit as mk
    >>> prediction = mk.Normal(jnp.zeros((3, 1)), jnp.ones((3, 1)))
    >>> prediction.shape, round(float(prediction.log_density(jnp.zeros((3, 1)))[0, 0]), 4)
    ((3, 1), -0.9189)
    """

    mean: Float[Array, "*shape"]
    scale: Float[Array, "*shape"]

    def __check_init__(self):
        if self.mean.shape != self.scale.shape or self.mean.dtype != self.scale.dtype:
            raise ValueError(
                f"mean and scale must agree, got {self.mean.dtype}{list(self.mean.shape)} and "
                f"{self.scale.dtype}{list(self.scale.shape)}. Use jnp.broadcast_to for one scale of many entries."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the mean, and of a draw."""
        return self.mean.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the mean, and of a draw."""
        return self.mean.dtype

    @typed
    def log_density(self, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Of each entry, in nats; for the density of a vector add its entries."""
        if value.shape != self.shape:
            raise ValueError(f"value must have the distribution's shape {list(self.shape)}, got {list(value.shape)}.")
        half_log_two_pi = jnp.asarray(0.5 * math.log(2 * math.pi), self.dtype)
        return -half_log_two_pi - jnp.log(self.scale) - 0.5 * jnp.square((value - self.mean) / self.scale)

    def kl(self, other: "Normal") -> Float[Array, "..."]:
        r"""The divergence of each entry, in nats; shapes broadcast.

        $$\mathrm{KL}(N(\mu, \sigma^2)\,\|\,N(m, s^2)) = \log\frac{s}{\sigma} + \frac{\sigma^2 + (\mu - m)^2}{2 s^2}
        - \frac12$$
        """
        ratio, gap = self.scale / other.scale, (self.mean - other.mean) / other.scale
        return 0.5 * (jnp.square(ratio) + jnp.square(gap) - 1) - jnp.log(ratio)

    @typed
    def sample(self, key: PRNGKey) -> Float[Array, "*shape"]:
        """One draw, differentiable in mean and scale: the mean plus the scale times standard normal noise."""
        return self.mean + self.scale * jax.random.normal(key, self.shape, self.dtype)
