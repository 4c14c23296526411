"""Use a module written for one example."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Shaped


class Batched(eqx.Module):
    """What `batched` returns: a module mapped over the leading axis.

    >>> import equinox as eqx, jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.Batched(eqx.nn.Linear(3, 2, key=jax.random.key(0)))(jnp.ones((5, 3))).shape
    (5, 2)
    """

    module: Any

    def __call__(self, x: Shaped[Array, "n *in"]) -> Shaped[Array, "n *out"]:
        return eqx.filter_vmap(lambda module, example: module(example), in_axes=(None, 0))(self.module, x)


def batched(module: Any) -> Batched:
    """Lift a module that takes one example, as Equinox's own layers do, to one that takes a batch.

    **Arguments:** `module`, called with `[*in]` and returning `[*out]`.

    **Returns:** a module called with `[n, *in]` and returning `[n, *out]`, holding the same leaves.

    **Raises:** `TypeError` when `module` cannot be called.

    >>> import equinox as eqx, jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.batched(eqx.nn.Linear(3, 2, key=jax.random.key(0)))(jnp.ones((5, 3))).shape
    (5, 2)
    """
    if not callable(module):
        raise TypeError(f"batched needs a module that is called with one example, got {type(module).__name__}.")
    return Batched(module)
