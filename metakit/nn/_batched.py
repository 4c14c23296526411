"""Use a module written for one example."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Shaped

from metakit._static import as_nodes, as_values


class Batched(eqx.Module):
    """What `batched` returns: a module mapped over the leading axis.

    - `module`: the module, whose functions and plain numbers are no leaves any more but part of the tree's structure,
      so that `jax.grad` and `jax.jit` take it, as they take metakit's own networks.

    >>> import equinox as eqx, jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.Batched(eqx.nn.Linear(3, 2, key=jax.random.key(0)))(jnp.ones((5, 3))).shape
    (5, 2)
    """

    module: Any = eqx.field(converter=as_nodes)

    def __call__(self, x: Shaped[Array, "n *in"]) -> Shaped[Array, "n *out"]:
        # Not jax.vmap: a module may hold further modules whose leaves are no arrays once they have their values again.
        return eqx.filter_vmap(lambda module, example: module(example), in_axes=(None, 0))(as_values(self.module), x)


def batched(module: Any) -> Batched:
    """Lift a module that takes one example, as Equinox's own layers do, to one that takes a batch.

    **Arguments:** `module`, called with `[*in]` and returning `[*out]`.

    **Returns:** a module called with `[n, *in]` and returning `[n, *out]`, holding the same arrays and no other leaves.

    **Raises:** `TypeError` when `module` cannot be called.

    >>> import equinox as eqx, jax, jax.numpy as jnp, metakit as mk
    >>> network = mk.nn.batched(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)))
    >>> jax.grad(lambda network: network(jnp.ones((5, 3))).sum())(network).module.layers[-1].bias.tolist()
    [5.0, 5.0]
    """
    if not callable(module):
        raise TypeError(f"batched needs a module that is called with one example, got {type(module).__name__}.")
    return Batched(module)
