"""Attention of every token to itself and to those before it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metakit._typecheck import keyed
from metakit._types import PRNGKey

from ._causal import AbstractCausalLayer, write
from ._initialisers import xavier_uniform
from ._linear import Linear


class CausalAttention(AbstractCausalLayer):
    r"""SNAIL's attention block: every token reads from itself and all before it; what it read is appended.

    $$q, k, v = \mathrm{affine}(x), \qquad
      a_{ts} = \operatorname{softmax}_{s \le t} \frac{q_t \cdot k_s}{\sqrt K}, \qquad
      y_t = \Bigl[x_t,\; \sum_{s \le t} a_{ts} v_s\Bigr]$$

    The softmax is over the tokens that are read, so the weights of each *reader* sum to 1. (Over the readers
    instead, as a known port has it, tokens would see the future.)

    **Arguments:**

    - `in_size`: features $C$ of the input.
    - `key_size`: $K$, features of queries and keys.
    - `value_size`: $V$, features of the values.
    - `key`: random key of the initial weights (Xavier uniform, biases zero).

    **Returns** (of a call with `[t, C]`): `[t, C + V]`.

    **Raises:** `ValueError` for a size below 1, or where `x` is not `[t, C]`.

    **Source:** Mishra et al. 2018, *A Simple Neural Attentive Meta-Learner*, section 3.2, figure 2b,
    https://arxiv.org/abs/1707.03141

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.CausalAttention(3, 4, 2, key=jax.random.key(0))(jnp.ones((10, 3))).shape
    (10, 5)
    """

    query: Linear
    key: Linear
    value: Linear

    @keyed
    def __init__(self, in_size: int, key_size: int, value_size: int, *, key: PRNGKey):
        if min(in_size, key_size, value_size) < 1:
            raise ValueError(
                f"in_size, key_size and value_size must be at least 1, got {in_size}, {key_size} and {value_size}."
            )
        query_key, key_key, value_key = jax.random.split(key, 3)
        self.query = Linear(in_size, key_size, weight_init=xavier_uniform, key=query_key)
        self.key = Linear(in_size, key_size, weight_init=xavier_uniform, key=key_key)
        self.value = Linear(in_size, value_size, weight_init=xavier_uniform, key=value_key)

    @property
    def in_size(self) -> int:
        return self.query.weight.shape[0]

    @property
    def out_size(self) -> int:
        return self.in_size + self.value.weight.shape[1]

    def read(self, x: Float[Array, "t in"]) -> tuple[tuple[Array, Array], Float[Array, "t out"]]:
        keys, values = self.key(x), self.value(x)
        not_later = jnp.tri(x.shape[0], dtype=bool)
        attention = jax.nn.softmax(_masked(self._scores(x, keys), not_later), axis=1)
        return (keys, values), jnp.concatenate([x, attention @ values], axis=1)

    def step(
        self, past: tuple[Array, Array], x: Float[Array, " in"], position: Int[Array, ""]
    ) -> tuple[tuple[Array, Array], Float[Array, " out"]]:
        keys, values = past
        x, key, value = x[None], self.key(x[None]), self.value(x[None])
        earlier = (jnp.arange(keys.shape[0], dtype=jnp.int32) < position)[None]
        # The token itself stands beside the past instead of in it: where many tokens are asked against one
        # past, each as the next, the past is then not copied for each of them.
        scores = jnp.concatenate([_masked(self._scores(x, keys), earlier), self._scores(x, key)], axis=1)
        attention = jax.nn.softmax(scores, axis=1)
        read = attention[:, :-1] @ values + attention[:, -1:] * value
        written = write(keys, key[0], position), write(values, value[0], position)
        return written, jnp.concatenate([x, read], axis=1)[0]

    def _scores(self, x: Float[Array, "t in"], keys: Float[Array, "s k"]) -> Float[Array, "t s"]:
        return self.query(x) @ keys.T / jnp.asarray(math.sqrt(keys.shape[1]), x.dtype)


def _masked(scores: Float[Array, "t s"], visible: Bool[Array, "t s"]) -> Float[Array, "t s"]:
    return jnp.where(visible, scores, jnp.full_like(scores, -jnp.inf))
