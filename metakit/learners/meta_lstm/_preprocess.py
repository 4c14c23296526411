"""How losses and gradients, whose sizes span many orders of magnitude, enter an LSTM."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metakit._typecheck import typed


@typed
def preprocess(v: Float[Array, "*shape"], p: ArrayLike = 10.0) -> Float[Array, "*shape 2"]:
    r"""The logarithm of a number's size and its sign, or where it is tiny the number itself, enlarged.

    $$v \mapsto \begin{cases} \bigl(\tfrac{\log |v|}{p},\; \operatorname{sign} v\bigr) & |v| \ge e^{-p} \\
      (-1,\; e^p v) & \text{otherwise} \end{cases}$$

    Both parts are continuous, finite and have a finite derivative everywhere, at $v = 0$ too.

    **Arguments:**

    - `v`: any shape.
    - `p`: how many powers of $e$ below 1 count as sizes; above 0, default 10, the papers'.

    **Returns:** the two numbers along a new last axis.

    **Source:** Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", appendix A,
    https://arxiv.org/abs/1606.04474; Ravi and Larochelle 2017, section 3.3, https://openreview.net/forum?id=rJY0-Kcll

    >>> import jax.numpy as jnp
    >>> preprocess(jnp.array([1.0, 0.0])).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    scale = jnp.asarray(p, v.dtype)
    large = jnp.abs(v) >= jnp.exp(-scale)
    # Where v is small the logarithm of 1 is taken in its place: the derivative of log 0, even thrown away, is NaN.
    size = jnp.log(jnp.abs(jnp.where(large, v, jnp.ones_like(v)))) / scale
    first = jnp.where(large, size, -jnp.ones_like(v))
    second = jnp.where(large, jnp.sign(v), jnp.exp(scale) * jnp.where(large, jnp.zeros_like(v), v))
    return jnp.stack([first, second], axis=-1)
