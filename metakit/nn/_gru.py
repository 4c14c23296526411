"""The gated recurrent unit, and what a network over a sequence must offer to act while the sequence is made."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._initialisers import xavier_uniform


@runtime_checkable
class SequenceModel(Protocol):
    """A causal network over one sequence: whole, or token by token with a memory, with the same numbers.

    A GRU is one, with its hidden state as the memory; so is a network with attention, with all it has seen as the
    memory. It is what a recurrent policy is built on. Anything with these members satisfies the protocol:

    - `in_size`, `out_size`: features in and out.
    - `start() -> state`: the memory before the first token.
    - `step(state, x) -> (state, y)`: the next token, `x` of `[in_size]` and `y` of `[out_size]`.
    - `read(x) -> (state, y)`: a whole sequence from its beginning, `[t, in_size]` to `[t, out_size]`, and the memory
      of having read it.
    """

    @property
    def in_size(self) -> int: ...

    @property
    def out_size(self) -> int: ...

    def start(self) -> Any: ...

    def step(self, state: Any, x: Any, /) -> tuple[Any, Any]: ...

    def read(self, x: Any, /) -> tuple[Any, Any]: ...


class GRUCell(eqx.Module):
    r"""One step of a gated recurrent unit, on a batch.

    $$(r, z) = \sigma(x W_x + h W_h + b), \qquad n = \tanh(x U_x + b_n + r \odot (h U_h + b_h)), \qquad
      h' = (1 - z) \odot n + z \odot h$$

    **Arguments:**

    - `in_size`: features of the input $x$.
    - `size`: features of the state $h$, which is also the output.
    - `key`: random key of the weights (Xavier uniform). Biases start at 0.

    **Returns** (of a call with `x` and `h`): the new state, `[n, size]`.

    **Raises:** `ValueError` for a size below 1, or where an argument of a call has another size.

    **Source:** Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", equations 5 to 8,
    https://arxiv.org/abs/1406.1078, with the reset gate after the product, as cuDNN, PyTorch and Equinox have it.

    >>> import jax, jax.numpy as jnp
    >>> GRUCell(3, 2, key=jax.random.key(0))(jnp.ones((4, 3)), jnp.ones((4, 2))).shape
    (4, 2)
    """

    input_weight: Float[Array, "in_size gates"]
    recurrent_weight: Float[Array, "size gates"]
    bias: Float[Array, " gates"]
    candidate_bias: Float[Array, " size"]

    @keyed
    def __init__(self, in_size: int, size: int, *, key: PRNGKey):
        if min(in_size, size) < 1:
            raise ValueError(f"in_size and size must be at least 1, got {in_size} and {size}.")
        input_key, recurrent_key = jax.random.split(key)
        # Each gate is a map of its own, so the fan out is one gate's and not all three's.
        self.input_weight = xavier_uniform(input_key, (in_size, 3 * size), in_size, size)
        self.recurrent_weight = xavier_uniform(recurrent_key, (size, 3 * size), size, size)
        self.bias = jnp.zeros((3 * size,), self.input_weight.dtype)
        self.candidate_bias = jnp.zeros((size,), self.input_weight.dtype)

    @property
    def size(self) -> int:
        """Features of the state."""
        return self.candidate_bias.shape[0]

    @typed
    def __call__(self, x: Float[Array, "n in"], h: Float[Array, "n hidden"]) -> Float[Array, "n hidden"]:
        return self.step(self.drive(x), h)

    def drive(self, x: Float[Array, "n in"]) -> Float[Array, "n gates"]:
        """The input's part of the gates: one product for a whole sequence, outside its loop."""
        if x.shape[1] != self.input_weight.shape[0]:
            raise ValueError(f"x must have {self.input_weight.shape[0]} features, got {list(x.shape)}.")
        return x @ self.input_weight + self.bias[None]

    def step(self, drive: Float[Array, "n gates"], h: Float[Array, "n hidden"]) -> Float[Array, "n hidden"]:
        """The step for an input that went through `drive`."""
        if h.shape[1] != self.size:
            raise ValueError(f"h must have {self.size} features, got {list(h.shape)}.")
        reset, update, candidate = jnp.split(drive, 3, axis=1)
        reset_h, update_h, candidate_h = jnp.split(h @ self.recurrent_weight, 3, axis=1)
        reset, update = jax.nn.sigmoid(reset + reset_h), jax.nn.sigmoid(update + update_h)
        candidate = jnp.tanh(candidate + reset * (candidate_h + self.candidate_bias[None]))
        return candidate + update * (h - candidate)


class GRU(eqx.Module):
    """A GRU over one sequence: a `SequenceModel` whose memory is its hidden state, which starts at 0.

    - `gru(x)`: a whole sequence, `[t, in_size]` to `[t, size]`.
    - `gru.read(x)`: the same, and the memory of having read it.
    - `gru.step(state, x)`: the next token, `[in_size]`; starts from `gru.start()` or after `read`.

    **Arguments:** `in_size`, `size` and `key`, as in `GRUCell`.

    **Returns** (of a call): `[t, size]`, the hidden state after each token.

    **Raises:** what `GRUCell` raises.

    >>> import jax, jax.numpy as jnp
    >>> gru = GRU(3, 2, key=jax.random.key(0))
    >>> state, outputs = gru.read(jnp.ones((5, 3)))
    >>> outputs.shape, gru.step(state, jnp.ones(3))[1].shape
    ((5, 2), (2,))
    """

    cell: GRUCell

    @keyed
    def __init__(self, in_size: int, size: int, *, key: PRNGKey):
        self.cell = GRUCell(in_size, size, key=key)

    @property
    def in_size(self) -> int:
        """Features of a token."""
        return self.cell.input_weight.shape[0]

    @property
    def out_size(self) -> int:
        """Features of an output, and of the memory."""
        return self.cell.size

    @typed
    def __call__(self, x: Float[Array, "t in"]) -> Float[Array, "t size"]:
        return self.read(x)[1]

    def start(self) -> Float[Array, " size"]:
        """Zeros."""
        return jnp.zeros_like(self.cell.candidate_bias)

    @typed
    def step(
        self, state: Float[Array, " size"], x: Float[Array, " in"]
    ) -> tuple[Float[Array, " size"], Float[Array, " size"]]:
        """The new hidden state, twice: as the memory and as the output."""
        state = self.cell(x[None], state[None])[0]
        return state, state

    @typed
    def read(self, x: Float[Array, "t in"]) -> tuple[Float[Array, " size"], Float[Array, "t size"]]:
        """A whole sequence from its beginning; returns the last hidden state and all of them."""

        def step(h: Array, drive: Array) -> tuple[Array, Array]:
            h = self.cell.step(drive[None], h)
            return h, h[0]

        last, outputs = jax.lax.scan(step, self.start()[None], self.cell.drive(x))
        return last[0], outputs
