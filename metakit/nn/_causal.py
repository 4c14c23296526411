"""Layers over a sequence in which no output depends on anything later, and a stack of them with a cache."""

import abc
import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from metakit._typecheck import typed


class AbstractCausalLayer(eqx.Module):
    """A layer over a sequence, `[t, in_size]` to `[t, out_size]`, whose output at one time depends on nothing
    later.

    So it can also be fed token by token. What it needs to remember is its `past`: a PyTree of arrays with a
    row for each token. One number, the `position`, then tells for all layers how many rows are valid; older
    rows are never changed, which is why going back in time is setting `position` back.

    - `read(x)`: a whole sequence `[t, in_size]` from its beginning; returns its `past`, of `t` rows, and the
      outputs `[t, out_size]`.
    - `step(past, x, position)`: the token `[in_size]` after the first `position` ones; returns the `past` with
      its row written, and the output `[out_size]`. `past` may have room for more rows than are valid.

    Both are one function in two forms: `step` over a sequence gives the rows of `read`.
    """

    @property
    @abc.abstractmethod
    def in_size(self) -> int:
        """Features of the input."""

    @property
    @abc.abstractmethod
    def out_size(self) -> int:
        """Features of the output."""

    @abc.abstractmethod
    def read(self, x: Float[Array, "t in"]) -> tuple[Any, Float[Array, "t out"]]:
        """A whole sequence, from its beginning."""

    @abc.abstractmethod
    def step(self, past: Any, x: Float[Array, " in"], position: Int[Array, ""]) -> tuple[Any, Float[Array, " out"]]:
        """The next token."""

    def __call__(self, x: Float[Array, "t in"]) -> Float[Array, "t out"]:
        self.require_features(x.shape)
        return self.read(x)[1]

    def require_features(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != self.in_size:
            raise ValueError(
                f"x must be one sequence, [t, {self.in_size}] for this {type(self).__name__}, got {list(shape)}. "
                "A batch of sequences goes through eqx.filter_vmap."
            )


class SequenceCache(eqx.Module):
    """What a `CausalSequence` remembers of the tokens it has read.

    **Arguments:**

    - `past`: for each layer its past activations, arrays with a row for each token that there is room for.
    - `position`: how many tokens have been read, int32; rows from there on are not looked at.

    >>> import jax, metakit as mk
    >>> layers = [mk.nn.CausalAttention(3, 4, 2, key=jax.random.key(0))]
    >>> int(mk.nn.CausalSequence(layers, length=8).start().position)
    0
    """

    past: tuple[Any, ...]
    position: Int[Array, ""]


class CausalSequence(eqx.Module):
    """Causal layers one after another: a whole sequence at once, or token by token with a cache.

    Its three forms give the same numbers:

    - `stack(x)`: a whole sequence, `[t, in_size]` to `[t, out_size]`. For training on recorded sequences.
    - `stack.read(x)`: the same, and the cache of having read it.
    - `stack.step(cache, x)`: the next token, `[in_size]`; starts from `stack.start()` or after `read`. For
      acting while the sequence is still being made. It has the shape of a scan's body, as
      the example shows.

    **Arguments:**

    - `layers`: at least one `AbstractCausalLayer`; the features of each must fit those of the next.
    - `length`: the longest sequence it can read, in tokens; the size of its cache.

    **Returns** (of a call): `[t, out_size]`.

    **Raises:** `ValueError` without layers, for a `length` below 1, for layers that do not fit each other, for
    a sequence longer than `length`, also one that grows token by token, or for tokens of another size. In
    compiled code, where nothing can raise, the output of `step` is NaN from token `length + 1` on.

    A cache that was set back with `rewind` goes on as if the later tokens had never been read, and mapping
    `step` over several tokens with one cache asks what each would give as the next.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> one, two = jax.random.split(jax.random.key(0))
    >>> convolutions = mk.nn.TemporalConvolution(3, 4, length=8, key=one)
    >>> attention = mk.nn.CausalAttention(convolutions.out_size, 4, 2, key=two)
    >>> stack = mk.nn.CausalSequence([convolutions, attention], length=8)
    >>> x = jnp.ones((8, 3))
    >>> stack(x).shape, stack.out_size
    ((8, 17), 17)
    >>> cache, outputs = jax.lax.scan(lambda cache, token: stack.step(cache, token), stack.start(), x)
    >>> bool(jnp.allclose(outputs, stack(x), atol=1e-6)), int(cache.position)
    (True, 8)

    **Source:** the layers of Mishra et al. 2018, *A Simple Neural Attentive Meta-Learner*, section 3,
    https://arxiv.org/abs/1707.03141
    """

    layers: tuple[AbstractCausalLayer, ...]
    length: int = eqx.field(static=True)

    def __init__(self, layers: Sequence[AbstractCausalLayer], *, length: int):
        if not layers:
            raise ValueError("layers must hold at least one causal layer, got none.")
        if length < 1:
            raise ValueError(f"length is the longest sequence in tokens, at least 1, got {length}.")
        for i, (before, after) in enumerate(itertools.pairwise(layers)):
            if before.out_size != after.in_size:
                raise ValueError(
                    f"layers must fit each other: layer {i} gives {before.out_size} features and layer {i + 1} "
                    f"takes {after.in_size}. Build the latter with in_size={before.out_size}."
                )
        self.layers = tuple(layers)
        self.length = length

    @property
    def in_size(self) -> int:
        """Features of a token."""
        return self.layers[0].in_size

    @property
    def out_size(self) -> int:
        """Features of an output."""
        return self.layers[-1].out_size

    @typed
    def __call__(self, x: Float[Array, "t *in"]) -> Float[Array, "t out"]:
        return self._read(x)[1]

    @typed
    def read(self, x: Float[Array, "t *in"]) -> tuple[SequenceCache, Float[Array, "t out"]]:
        """A whole sequence from its beginning, `[t, in_size]`; returns the cache and `[t, out_size]`."""
        past, outputs = self._read(x)
        missing = self.length - x.shape[0]
        past = jax.tree.map(lambda rows: jnp.pad(rows, [(0, missing), (0, 0)]), past)
        return SequenceCache(past, jnp.full((), x.shape[0], jnp.int32)), outputs

    def start(self) -> SequenceCache:
        """The cache before the first token."""
        dtype = jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array))[0].dtype
        longest = jax.ShapeDtypeStruct((self.length, self.in_size), dtype)
        past = eqx.filter_eval_shape(lambda stack, x: stack._read(x)[0], self, longest)
        zeros = jax.tree.map(lambda rows: jnp.zeros(rows.shape, rows.dtype), past)
        return SequenceCache(zeros, jnp.zeros((), jnp.int32))

    @typed
    def step(self, cache: SequenceCache, x: Float[Array, " in"]) -> tuple[SequenceCache, Float[Array, " out"]]:
        """The next token, `[in_size]`; returns the cache that holds it, too, and the output `[out_size]`."""
        self.layers[0].require_features((1, *x.shape))
        full = cache.position >= self.length
        if not isinstance(full, Tracer) and full:
            raise ValueError(
                f"cache is full: it holds length={self.length} tokens, and x would be one more. Build the sequence "
                "model for as many tokens as it will be given, or take the cache back with mk.nn.rewind."
            )
        written = []
        for layer, past in zip(self.layers, cache.past, strict=True):
            past, x = layer.step(past, x, cache.position)
            written.append(past)
        # Writing past the end would overwrite the last row, and go on with plausible numbers.
        x = jnp.where(full, jnp.full_like(x, jnp.nan), x)
        return SequenceCache(tuple(written), cache.position + jnp.ones_like(cache.position)), x

    def _read(self, x: Float[Array, "t *in"]) -> tuple[tuple[Any, ...], Float[Array, "t out"]]:
        self.layers[0].require_features(x.shape)
        if x.shape[0] > self.length:
            raise ValueError(
                f"x must hold at most length={self.length} tokens, got {x.shape[0]} in x{list(x.shape)}. Build the "
                "sequence model for the longest sequence that it will be given."
            )
        pasts = []
        for layer in self.layers:
            past, x = layer.read(x)
            pasts.append(past)
        return tuple(pasts), x


@typed
def rewind(cache: SequenceCache, position: Int[Array, ""]) -> SequenceCache:
    """The cache as it was after its first `position` tokens.

    **Arguments:** `cache`; `position`, an integer array, at most the cache's own; may be traced.

    **Returns:** a `SequenceCache` for `CausalSequence.step`. Nothing is copied.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> stack = mk.nn.CausalSequence([mk.nn.CausalAttention(3, 4, 2, key=jax.random.key(0))], length=8)
    >>> whole, _ = stack.read(jnp.ones((8, 3)))
    >>> int(mk.nn.rewind(whole, jnp.asarray(5)).position)
    5
    """
    return SequenceCache(cache.past, position.astype(jnp.int32))


def recall(rows: Float[Array, "t c"], position: Int[Array, ""], lag: int) -> Float[Array, " c"]:
    """The row `lag` tokens before `position`; zeros before the first."""
    index = position - lag
    row = jax.lax.dynamic_index_in_dim(rows, jnp.maximum(index, jnp.zeros_like(index)), keepdims=False)
    return jnp.where(index >= 0, row, jnp.zeros_like(row))


def write(rows: Float[Array, "t c"], row: Float[Array, " c"], position: Int[Array, ""]) -> Float[Array, "t c"]:
    """The rows with the one at `position` replaced."""
    return jax.lax.dynamic_update_index_in_dim(rows, row, position, 0)
