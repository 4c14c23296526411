"""Causal convolutions over time, and SNAIL's blocks of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metakit._typecheck import keyed
from metakit._types import PRNGKey

from ._causal import AbstractCausalLayer, recall, write
from ._initialisers import Initialiser, xavier_uniform


class CausalConv1d(AbstractCausalLayer):
    r"""A dilated causal convolution of two taps.

    $$y_t = x_{t-R}\, W_0 + x_t\, W_1 + b, \qquad x_s = 0 \text{ for } s < 0$$

    **Arguments:**

    - `in_size`, `out_size`: features in and out, at least 1.
    - `dilation`: $R$, how many tokens back the other tap lies, at least 1 (the default).
    - `weight_init`: default Xavier uniform; the bias starts at zero.
    - `key`: random key of the initial weights.

    **Returns** (of a call with `[t, in_size]`): `[t, out_size]`.

    **Raises:** `ValueError` for a size or dilation below 1, or where `x` is not `[t, in_size]`.

    It is a shift and two matrix products, which stay matrix products when every task has weights of its own;
    a convolution primitive would become a grouped one.

    **Source:** Mishra et al. 2018, *A Simple Neural Attentive Meta-Learner*, section 3.1,
    https://arxiv.org/abs/1707.03141

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.CausalConv1d(3, 2, dilation=4, key=jax.random.key(0))(jnp.ones((10, 3))).shape
    (10, 2)
    """

    earlier_weight: Float[Array, "in_size out_size"]
    weight: Float[Array, "in_size out_size"]
    bias: Float[Array, " out_size"]
    dilation: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        dilation: int = 1,
        weight_init: Initialiser = xavier_uniform,
        key: PRNGKey,
    ):
        if min(in_size, out_size, dilation) < 1:
            raise ValueError(
                f"in_size, out_size and dilation must be at least 1, got {in_size}, {out_size} and {dilation}."
            )
        self.earlier_weight, self.weight = weight_init(key, (2, in_size, out_size), 2 * in_size, 2 * out_size)
        self.bias = jnp.zeros((out_size,), self.weight.dtype)
        self.dilation = dilation

    @property
    def in_size(self) -> int:
        return self.weight.shape[0]

    @property
    def out_size(self) -> int:
        return self.weight.shape[1]

    def read(self, x: Float[Array, "t in"]) -> tuple[Array, Float[Array, "t out"]]:
        return x, self.combine(delayed(x, self.dilation), x)

    def step(
        self, past: Float[Array, "t in"], x: Float[Array, " in"], position: Int[Array, ""]
    ) -> tuple[Array, Float[Array, " out"]]:
        earlier = recall(past, position, self.dilation)
        return write(past, x, position), self.combine(earlier[None], x[None])[0]

    def combine(self, earlier: Float[Array, "t in"], x: Float[Array, "t in"]) -> Float[Array, "t out"]:
        """Both taps, for inputs that were shifted already."""
        return earlier @ self.earlier_weight + x @ self.weight + self.bias[None]


def delayed(x: Float[Array, "t c"], lag: int) -> Float[Array, "t c"]:
    """The sequence `lag` tokens later, with zeros before it."""
    return jnp.pad(x, [(lag, 0), (0, 0)])[: x.shape[0]]


class CausalDense(AbstractCausalLayer):
    r"""SNAIL's dense block: gated causal convolutions, appended to their own input.

    $$y_t = \bigl[x_t,\; \tanh(\mathrm{conv}_R(x)_t) \odot \sigma(\mathrm{conv}'_R(x)_t)\bigr]$$

    **Arguments:**

    - `in_size`: features $C$ of the input.
    - `filters`: features $D$ that are appended.
    - `dilation`: $R$ of both convolutions, default 1.
    - `key`: random key of the initial weights.

    **Returns** (of a call with `[t, C]`): `[t, C + D]`.

    **Raises:** what `CausalConv1d` raises.

    **Source:** Mishra et al. 2018, section 3.1, figure 2a, https://arxiv.org/abs/1707.03141

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.CausalDense(3, 4, dilation=2, key=jax.random.key(0))(jnp.ones((10, 3))).shape
    (10, 7)
    """

    filter: CausalConv1d
    gate: CausalConv1d

    @keyed
    def __init__(self, in_size: int, filters: int, *, dilation: int = 1, key: PRNGKey):
        filter_key, gate_key = jax.random.split(key)
        self.filter = CausalConv1d(in_size, filters, dilation=dilation, key=filter_key)
        self.gate = CausalConv1d(in_size, filters, dilation=dilation, key=gate_key)

    @property
    def in_size(self) -> int:
        return self.filter.in_size

    @property
    def out_size(self) -> int:
        return self.filter.in_size + self.filter.out_size

    def read(self, x: Float[Array, "t in"]) -> tuple[Array, Float[Array, "t out"]]:
        return x, self._append(delayed(x, self.filter.dilation), x)

    def step(
        self, past: Float[Array, "t in"], x: Float[Array, " in"], position: Int[Array, ""]
    ) -> tuple[Array, Float[Array, " out"]]:
        earlier = recall(past, position, self.filter.dilation)
        return write(past, x, position), self._append(earlier[None], x[None])[0]

    def _append(self, earlier: Float[Array, "t in"], x: Float[Array, "t in"]) -> Float[Array, "t out"]:
        activation = jnp.tanh(self.filter.combine(earlier, x)) * jax.nn.sigmoid(self.gate.combine(earlier, x))
        return jnp.concatenate([x, activation], axis=1)


class TemporalConvolution(AbstractCausalLayer):
    r"""SNAIL's temporal convolution: dense blocks whose dilations double until they span the sequence.

    $$L = \lceil \log_2 T \rceil, \qquad R_i = 2^{i}, \quad i = 0, \dots, L - 1$$

    The last output sees every token of a sequence of $T$: the lags $0, \dots, 2^L - 1$.

    **Arguments:**

    - `in_size`: features $C$ of the input.
    - `filters`: features $D$ that each dense block appends.
    - `length`: $T$, the longest sequence, at least 2.
    - `paper_dilation`: take $R_i = 2^i$ for $i = 1, \dots, L$, as the paper's listing says; default `False`.
      All dilations are even then, so no output ever sees a token an odd number of tokens back.
    - `key`: random key of the initial weights.

    **Returns** (of a call with `[t, C]`): `[t, C + D L]`. A sequence longer than $T$ is read too; its last
    output then sees the last $2^L$ tokens.

    **Raises:** `ValueError` for a `length` below 2, and what `CausalConv1d` raises.

    **Source:** Mishra et al. 2018, section 3.1, figure 2a and its listing, https://arxiv.org/abs/1707.03141

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> layer = mk.nn.TemporalConvolution(101, 128, length=6, key=jax.random.key(0))
    >>> [block.filter.dilation for block in layer.blocks], layer(jnp.ones((6, 101))).shape
    ([1, 2, 4], (6, 485))
    """

    blocks: tuple[CausalDense, ...]

    @keyed
    def __init__(self, in_size: int, filters: int, *, length: int, paper_dilation: bool = False, key: PRNGKey):
        if length < 2:
            raise ValueError(
                f"length is the longest sequence in tokens, at least 2 for a temporal convolution, got {length}."
            )
        count = (length - 1).bit_length()  # the ceiling of log2, without its rounding
        self.blocks = tuple(
            CausalDense(in_size + filters * i, filters, dilation=2 ** (i + paper_dilation), key=block_key)
            for i, block_key in enumerate(jax.random.split(key, count))
        )

    @property
    def in_size(self) -> int:
        return self.blocks[0].in_size

    @property
    def out_size(self) -> int:
        return self.blocks[-1].out_size

    # Each block appends to its input, so the last block's inputs hold those of all blocks, as their first columns.
    def read(self, x: Float[Array, "t in"]) -> tuple[Array, Float[Array, "t out"]]:
        past = x
        for block in self.blocks:
            past, x = block.read(x)
        return past, x

    def step(
        self, past: Float[Array, "t in_last"], x: Float[Array, " in"], position: Int[Array, ""]
    ) -> tuple[Array, Float[Array, " out"]]:
        written = past
        for block in self.blocks:
            written, x = block.step(past[:, : block.in_size], x, position)
        return written, x
