"""Which context points a target listens to: the deterministic path's weights."""

import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from metakit import nn
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._tree import as_float_array
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey
from metakit.learners._options import positive

KINDS = ("uniform", "laplace", "dot", "multihead")


class Attention(eqx.Module):
    r"""A weighted mean of the context's values for each target.

    $$r_* = \sum_i w_i(x_*)\, r_i, \qquad k_i = e(x_i), \quad q = e(x_*), \qquad \sum_i w_i = 1$$

    | `kind` | weights |
    |---|---|
    | `"uniform"` | $w_i = 1/n$: the plain mean, which makes an attentive neural process a plain one |
    | `"laplace"` | $w_i \propto \exp(-\lVert q - k_i\rVert_1 / l)$ |
    | `"dot"` | $w_i \propto \exp(q^\top k_i / \sqrt{d})$ |
    | `"multihead"` | $\sum_h O_h \sum_i w_{ih} V_h r_i$, with dot weights of $Q_h q$ and $K_h k_i$ in each head |

    **Arguments:**

    - `kind`: as above.
    - `in_size`: features of an input $x$.
    - `value_size`: features of a value $r_i$.
    - `width`: units of $e$, a network with one hidden layer, the same for keys and queries as in the released code;
      default 128. `"uniform"` has none.
    - `num_heads`: of `"multihead"`, a divisor of `value_size`; default 8.
    - `length_scale`: $l$ of `"laplace"`, above 0, a number or a `Hyperparameter`; default fixed at 1.
    - `key`: random key of the weights.

    **Returns** (of a call with targets' inputs `[query, in]`, context inputs `[n, in]`, values `[n, d]` and a mask
    `[n]`): `[query, d]`; zero where the mask leaves no context.

    **Raises:** `ValueError` for an unknown `kind`, or where `num_heads` does not divide `value_size`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mean = mk.neural_process.Attention("uniform", in_size=1, value_size=2, key=jax.random.key(0))
    >>> values, mask = jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), jnp.array([True, True, False])
    >>> mean(jnp.zeros((1, 1)), jnp.zeros((3, 1)), values, mask).tolist()
    [[2.0, 3.0]]

    **Source:** Kim et al. 2019, *Attentive Neural Processes*, section 3 and appendix A,
    https://arxiv.org/abs/1901.05761; the released notebook adds up the heads' projections without bias, as here.
    """

    embed: Callable[..., Any] | None
    heads: "Heads | None"
    length_scale: Hyperparameter
    kind: Literal["uniform", "laplace", "dot", "multihead"] = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        kind: str,
        *,
        in_size: int,
        value_size: int,
        width: int = 128,
        num_heads: int = 8,
        length_scale: Hyperparameter | ArrayLike = 1.0,
        key: PRNGKey,
    ):
        require_option("kind", kind, KINDS)
        embed_key, head_key = jax.random.split(key)
        uniform, several = kind == "uniform", kind == "multihead"
        embed = nn.MLP(in_size, width, width, 1, weight_init=nn.xavier_uniform, key=embed_key)
        self.embed = None if uniform else embed
        self.heads = Heads(width, value_size, num_heads, key=head_key) if several else None
        self.length_scale = positive("length_scale", length_scale)
        self.kind = kind  # pyright: ignore[reportAttributeAccessIssue]

    @typed
    def __call__(
        self,
        x: Float[Array, "query in"],
        context: Float[Array, "n in"],
        values: Float[Array, "n d"],
        mask: Bool[Array, " n"],
    ) -> Float[Array, "query d"]:
        if self.embed is None:
            return jnp.broadcast_to(masked_mean(values, mask)[None], (x.shape[0], values.shape[1]))
        keys, queries = self.embed(context), self.embed(x)
        if self.heads is not None:
            return self.heads(queries, keys, values, mask)
        if self.kind == "laplace":
            distance = jnp.sum(jnp.abs(queries[:, None] - keys[None]), axis=-1)
            return weights(-distance / self.length_scale.value.astype(distance.dtype), mask) @ values
        return weights(_dot(queries, keys), mask) @ values


class Heads(eqx.Module):
    """Several dot attentions on learned projections, added up through their own output projections."""

    query: Float[Array, "heads width size"]
    key: Float[Array, "heads width size"]
    value: Float[Array, "heads d size"]
    output: Float[Array, "heads size d"]

    def __init__(self, width: int, value_size: int, num_heads: int, *, key: PRNGKey):
        if num_heads < 1 or value_size % num_heads:
            raise ValueError(f"num_heads must divide the {value_size} features of a value, got {num_heads}.")
        size = value_size // num_heads

        def normal(key: PRNGKey, shape: tuple[int, ...], fan_in: int) -> Array:
            # The standard deviations are the released code's, which takes the value's for the output as well.
            return jax.random.normal(key, shape, jnp.result_type(float)) * as_float_array(1 / math.sqrt(fan_in))

        query_key, key_key, value_key, output_key = jax.random.split(key, 4)
        self.query = normal(query_key, (num_heads, width, size), width)
        self.key = normal(key_key, (num_heads, width, size), width)
        self.value = normal(value_key, (num_heads, value_size, size), width)
        self.output = normal(output_key, (num_heads, size, value_size), value_size)

    def __call__(
        self,
        queries: Float[Array, "query width"],
        keys: Float[Array, "n width"],
        values: Float[Array, "n d"],
        mask: Bool[Array, " n"],
    ) -> Float[Array, "query d"]:
        # All heads' projections in one product each: under vmap over tasks, products of small matrices are slow.
        queries = jnp.einsum("mw,hws->hms", queries, self.query)
        keys = jnp.einsum("nw,hws->hns", keys, self.key)
        values = jnp.einsum("nd,hds->hns", values, self.value)
        heard = jax.vmap(lambda q, k, v: weights(_dot(q, k), mask) @ v)(queries, keys, values)
        return jnp.einsum("hms,hsd->md", heard, self.output)


def masked_mean(values: Float[Array, "n d"], mask: Bool[Array, " n"]) -> Float[Array, " d"]:
    """The mean of the real rows; zero where there is none."""
    counted = mask.astype(values.dtype)
    number = jnp.sum(counted)
    return counted @ values / jnp.maximum(number, jnp.ones_like(number))


def weights(scores: Float[Array, "query n"], mask: Bool[Array, " n"]) -> Float[Array, "query n"]:
    """Softmax over the real rows; zero where there is none."""
    scores = jnp.where(mask[None], scores, jnp.full_like(scores, -jnp.inf))
    # Without a single real row the softmax would be 0/0, and its derivative NaN even where it is not used.
    scores = jnp.where(jnp.any(mask), scores, jnp.zeros_like(scores))
    return jax.nn.softmax(scores, axis=1) * mask.astype(scores.dtype)[None]


def _dot(queries: Float[Array, "query d"], keys: Float[Array, "n d"]) -> Float[Array, "query n"]:
    return queries @ keys.T / jnp.sqrt(jnp.asarray(queries.shape[1], queries.dtype))
