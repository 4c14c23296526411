"""The mean of each class's features."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metakit._typecheck import typed


@typed
def prototypes(
    features: Float[Array, "n d"], members: Bool[Array, "n way"]
) -> tuple[Float[Array, "way d"], Bool[Array, " way"]]:
    r"""The mean embedding of each class, over the class's own number of examples.

    **Arguments:**

    - `features`: `[n, d]`.
    - `members`: `[n, way]` Booleans, whether example $i$ belongs to class $n$.

    **Returns:** prototypes `[way, d]`, a zero row for a class without examples, and `[way]` Booleans: whether
    the class has any.

    >>> import jax.numpy as jnp
    >>> means, present = prototypes(jnp.array([[1.0], [3.0]]), jnp.array([[True, False], [True, False]]))
    >>> means.tolist(), present.tolist()
    ([[2.0], [0.0]], [True, False])
    """
    weights = members.astype(features.dtype)
    counts = jnp.sum(weights, axis=0)
    sums = jnp.matmul(weights.T, features, precision=jax.lax.Precision.HIGHEST)
    return sums / jnp.maximum(counts, jnp.ones_like(counts))[:, None], counts > 0
