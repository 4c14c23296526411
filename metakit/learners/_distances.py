"""How alike two sets of embeddings are: every row of one against every row of the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import typed

# These products are small beside the embedding network, and their differences are the logits: the 10 bits
# that an accelerator keeps of each factor by default would show in them.
_PRECISION = jax.lax.Precision.HIGHEST


@typed
def squared_euclidean(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    r"""Squared Euclidean distances between rows.

    $$D_{ij} = \lVert a_i - b_j\rVert^2 = \lVert a_i\rVert^2 - 2\,a_i\cdot b_j + \lVert b_j\rVert^2$$

    The expanded form needs no `[n, m, d]` array but loses digits to cancellation where the norms are large
    beside the distances, as with features that share an offset. So both sets are first moved by the mean of
    `b`, which changes no distance. A pair of equal rows may come out a rounding error below zero; clipping
    that would set the gradient and curvature there to zero.

    **Arguments:** `a`, `[n, d]`, and `b`, `[m, d]`, of one dtype.

    **Returns:** `[n, m]`.

    >>> import jax.numpy as jnp
    >>> squared_euclidean(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [1.0, 0.0]])).round().tolist()
    [[25.0, 1.0]]
    """
    # No distance depends on the offset, so every derivative with respect to it is zero and stopping it is
    # exact.
    offset = jax.lax.stop_gradient(jnp.mean(b, axis=0, keepdims=True))
    a, b = a - offset, b - offset
    products = jnp.matmul(a, b.T, precision=_PRECISION)
    return jnp.sum(jnp.square(a), axis=1)[:, None] - 2 * products + jnp.sum(jnp.square(b), axis=1)[None, :]


@typed
def unit_rows(a: Float[Array, "n d"]) -> Float[Array, "n d"]:
    r"""Rows divided by their Euclidean norm, $a_i / \lVert a_i\rVert$; a zero row stays zero, with zero
    gradient.

    **Arguments:** `a`, `[n, d]`.

    **Returns:** `[n, d]`.

    >>> import jax.numpy as jnp
    >>> unit_rows(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    # Squares of tiny or huge entries leave the range of float32, so divide by the largest entry first. A unit
    # row does not depend on that factor: as above, stopping its gradient is exact.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(a), axis=1, keepdims=True))
    nonzero = ~(largest < jnp.finfo(a.dtype).tiny)  # so that NaN stays NaN
    # `where` on both sides of the division: its derivative must not meet 0/0 even where the result is thrown
    # away.
    a = jnp.where(nonzero, a, jnp.ones_like(a)) / jnp.where(nonzero, largest, jnp.ones_like(largest))
    unit = a / jnp.sqrt(jnp.sum(jnp.square(a), axis=1, keepdims=True))
    return jnp.where(nonzero, unit, jnp.zeros_like(unit))


@typed
def cosine(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    r"""Cosines between rows; 0 where either row is zero, with zero gradient for that row.

    $$C_{ij} = \frac{a_i\cdot b_j}{\lVert a_i\rVert\,\lVert b_j\rVert}$$

    **Arguments:** `a`, `[n, d]`, and `b`, `[m, d]`, of one dtype.

    **Returns:** `[n, m]`, in [-1, 1] up to rounding.

    >>> import jax.numpy as jnp
    >>> cosine(jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0, 0.0]]
    """
    return jnp.matmul(unit_rows(a), unit_rows(b).T, precision=_PRECISION)
