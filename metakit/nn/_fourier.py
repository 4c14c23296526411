"""Waves of an input beside it: what lets a small network draw fast changes."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._errors import require_number, require_whole
from metakit._typecheck import typed


class FourierFeatures(eqx.Module):
    r"""An input together with sines and cosines of it, at evenly spaced frequencies.

    $$\phi(x) = \bigl(x,\; \sin \omega_1 x,\; \dots,\; \sin \omega_K x,\; \cos \omega_1 x,\; \dots,\; \cos \omega_K
    x\bigr), \qquad \omega_k = \frac{k}{K}\, \omega_K$$

    where a wave of $x$ is one of each of its coordinates. A network of ReLUs learns slow changes of its input first,
    and fast ones late.

    **Arguments:**

    - `num`: $K$, at least 1, static.
    - `highest`: $\omega_K$, radians per unit of $x$, above 0 and finite, static. A curve of length scale $\ell$ needs
      about $2.5 / \ell$. The waves together repeat after $2 \pi K / \omega_K$, which should exceed the range of $x$.

    **Returns** (of a call with `[n, in]`): `[n, in * (2 * num + 1)]`: all of $x$, then all sines, coordinate by
    coordinate, then all cosines.

    **Raises:** `ValueError` for a number outside these ranges, `TypeError` for what is none.

    **Source:** Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains", section 6, https://arxiv.org/abs/2006.10739. Its frequencies are drawn at random or grow geometrically.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.nn.FourierFeatures(8, 6.0)(jnp.ones((5, 2))).shape
    (5, 34)
    """

    num: int = eqx.field(static=True)
    highest: float = eqx.field(static=True)

    def __init__(self, num: int, highest: float):
        require_whole("num", num)
        require_number("highest", highest)
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}.")
        if not 0 < highest < math.inf:
            raise ValueError(f"highest must be above 0 and finite, in radians per unit of the input, got {highest}.")
        self.num, self.highest = int(num), float(highest)

    @typed
    def __call__(self, x: Float[Array, "n in"]) -> Float[Array, "n out"]:
        frequencies = jnp.arange(1, self.num + 1, dtype=x.dtype) * (self.highest / self.num)
        angles = (x[:, :, None] * frequencies[None, None]).reshape(x.shape[0], -1)
        return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=1)
