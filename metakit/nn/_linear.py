"""Affine layer and multi-layer perceptron, on batches."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._static import as_node
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._dense import dense
from ._initialisers import Initialiser, he_normal


class Linear(eqx.Module):
    """`y = x W + b` on a batch.

    **Arguments:**

    - `in_size`, `out_size`: features in and out, at least 1.
    - `weight_init`: how `W` starts, default He normal; `b` starts at zero.
    - `key`: random key of the initial weights.

    **Returns** (of a call): `[n, out_size]` for `x` of `[n, in_size]`.

    **Raises:** `ValueError` when `x` is not `[n, in_size]`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.Linear(3, 2, key=jax.random.key(0))(jnp.ones((4, 3))).shape
    (4, 2)
    """

    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"]

    @keyed
    def __init__(self, in_size: int, out_size: int, *, weight_init: Initialiser = he_normal, key: PRNGKey):
        if in_size < 1 or out_size < 1:
            raise ValueError(f"in_size and out_size must be at least 1, got {in_size} and {out_size}.")
        self.weight = weight_init(key, (in_size, out_size), in_size, out_size)
        self.bias = jnp.zeros((out_size,), self.weight.dtype)

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n out"]:
        if x.ndim != 2 or x.shape[1] != self.weight.shape[0]:
            raise ValueError(
                f"this Linear takes x of [n, {self.weight.shape[0]}], got {list(x.shape)}. "
                "Flatten or reshape the features first; a batch of tasks goes through eqx.filter_vmap."
            )
        return dense(x, self.weight) + self.bias[None]


class MLP(eqx.Module):
    """Affine layers with an activation between them, on a batch; the last one is `head`.

    **Arguments:**

    - `in_size`, `out_size`: features in and out.
    - `width`: units of each hidden layer.
    - `depth`: number of hidden layers, at least 0.
    - `activation`: elementwise, default ReLU.
    - `weight_init`: how every weight starts, default He normal. On curves, whose inputs go up to 5, that is too much:
      MAML with 5 inner steps of 0.01 diverges on sinusoids (`width=40, depth=2`), with `mk.nn.xavier_uniform` it
      learns at once. `mk.nn.small_truncated_normal` is the published start of MAML's network (standard deviation
      0.01).
    - `norm`: makes the norm before each activation from the layer's units, such as `mk.nn.BatchStatNorm`; default
      none.
    - `key`: random key of the initial weights.

    **Returns** (of a call): `[n, out_size]`.

    **Raises:** `ValueError` for a negative depth, or when `x` is not `[n, in_size]`.

    **Source:** Finn et al. 2017, *Model-Agnostic Meta-Learning*, section 5.1 (`width=40, depth=2`),
    https://arxiv.org/abs/1703.03400

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.MLP(1, 1, width=40, depth=2, key=jax.random.key(0))(jnp.ones((10, 1))).shape
    (10, 1)
    """

    hidden: tuple[Linear, ...]
    norms: tuple[Any, ...] | None
    head: Linear
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_size: int,
        out_size: int,
        width: int,
        depth: int,
        activation: Callable[[Array], Array] = jax.nn.relu,
        *,
        weight_init: Initialiser = he_normal,
        norm: Callable[[int], Any] | None = None,
        key: PRNGKey,
    ):
        if depth < 0:
            raise ValueError(f"depth is the number of hidden layers and must be at least 0, got {depth}.")
        sizes = [in_size, *[width] * depth, out_size]
        keys = jax.random.split(key, depth + 1)
        layers = [
            Linear(i, o, weight_init=weight_init, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]
        self.hidden, self.head, self.activation = tuple(layers[:-1]), layers[-1], activation
        self.norms = None if norm is None else tuple(as_node(norm(width)) for _ in self.hidden)

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n out"]:
        for i, layer in enumerate(self.hidden):
            x = layer(x) if self.norms is None else self.norms[i](layer(x))
            x = self.activation(x)
        return self.head(x)
