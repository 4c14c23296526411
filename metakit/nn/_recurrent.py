"""LSTMs: the cell, one that reads a set in both directions, and one that reads a set by attention."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._initialisers import xavier_uniform

LSTMState: TypeAlias = tuple[Float[Array, "n hidden"], Float[Array, "n hidden"]]


class LSTMCell(eqx.Module):
    r"""One step of a long short-term memory, on a batch.

    $$(i, f, g, o) = x W_x + h W_h + b, \quad
      c' = \sigma(f) \odot c + \sigma(i) \odot \tanh g, \quad \hat h = \sigma(o) \odot \tanh c'$$

    **Arguments:**

    - `in_size`: features of the input $x$.
    - `size`: features of the cell $c$ and of the output $\hat h$.
    - `recurrent_size`: features of the recurrent input $h$; default `size`, a plain LSTM. Full context
      embeddings feed back an output *and* what was read, twice as many.
    - `key`: random key of the weights (Xavier uniform). Biases start at 0, the forget gate's at 1 so that
      memory survives the first steps of training.

    **Returns** (of a call with `x`, `h`, `c`): the output and the new cell, each `[n, size]`.

    **Raises:** `ValueError` for a size below 1, or where an argument of a call has another size.

    **Source:** Hochreiter and Schmidhuber 1997; forget gate's bias: Jozefowicz et al. 2015, section 4.1,
    https://proceedings.mlr.press/v37/jozefowicz15.html

    >>> import jax, jax.numpy as jnp
    >>> cell = LSTMCell(3, 2, key=jax.random.key(0))
    >>> output, memory = cell(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((4, 2)))
    >>> output.shape, memory.shape
    ((4, 2), (4, 2))
    """

    input_weight: Float[Array, "in_size gates"]
    recurrent_weight: Float[Array, "recurrent_size gates"]
    bias: Float[Array, " gates"]

    @keyed
    def __init__(self, in_size: int, size: int, *, recurrent_size: int | None = None, key: PRNGKey):
        recurrent_size = size if recurrent_size is None else recurrent_size
        if min(in_size, size, recurrent_size) < 1:
            raise ValueError(
                f"in_size, size and recurrent_size must be at least 1, got {in_size}, {size} and {recurrent_size}."
            )
        input_key, recurrent_key = jax.random.split(key)
        # Each gate is a map of its own, so the fan out is one gate's and not all four's.
        self.input_weight = xavier_uniform(input_key, (in_size, 4 * size), in_size, size)
        self.recurrent_weight = xavier_uniform(recurrent_key, (recurrent_size, 4 * size), recurrent_size, size)
        self.bias = jnp.zeros((4 * size,), self.input_weight.dtype).at[size : 2 * size].set(1)

    @property
    def size(self) -> int:
        """Features of the cell and of the output."""
        return self.bias.shape[0] // 4

    @typed
    def __call__(
        self, x: Float[Array, "n in"], h: Float[Array, "n recurrent"], c: Float[Array, "n hidden"]
    ) -> LSTMState:
        return self.step(self.drive(x), h, c)

    def drive(self, x: Float[Array, "n in"]) -> Float[Array, "n gates"]:
        """The input's part of the gates: one product for a whole sequence, outside its loop."""
        if x.shape[1] != self.input_weight.shape[0]:
            raise ValueError(f"x must have {self.input_weight.shape[0]} features, got {list(x.shape)}.")
        return x @ self.input_weight + self.bias[None]

    def step(
        self, drive: Float[Array, "n gates"], h: Float[Array, "n recurrent"], c: Float[Array, "n hidden"]
    ) -> LSTMState:
        """The step for an input that went through `drive`."""
        if h.shape[1] != self.recurrent_weight.shape[0] or c.shape[1] != self.size:
            raise ValueError(
                f"h and c must have {self.recurrent_weight.shape[0]} and {self.size} features, got "
                f"{list(h.shape)} and {list(c.shape)}."
            )
        i, f, g, o = jnp.split(drive + h @ self.recurrent_weight, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c


class BiLSTM(eqx.Module):
    """Two LSTMs over one sequence, one from each end.

    **Arguments:** `in_size` and `size`, as in `LSTMCell`, for both; `key`, random key of the weights.

    **Returns** (of a call with `[n, in_size]`, a sequence of `n`): the outputs of the forward and of the
    backward LSTM, each `[n, size]`, row `i` belonging to element `i`. Sum or concatenate them.

    **Raises:** what `LSTMCell` raises.

    **Source:** Schuster and Paliwal, *Bidirectional Recurrent Neural Networks*, 1997.

    >>> import jax, jax.numpy as jnp
    >>> forward, backward = BiLSTM(3, 2, key=jax.random.key(0))(jnp.ones((5, 3)))
    >>> forward.shape, backward.shape
    ((5, 2), (5, 2))
    """

    forward: LSTMCell
    backward: LSTMCell

    @keyed
    def __init__(self, in_size: int, size: int, *, key: PRNGKey):
        forward_key, backward_key = jax.random.split(key)
        self.forward = LSTMCell(in_size, size, key=forward_key)
        self.backward = LSTMCell(in_size, size, key=backward_key)

    @typed
    def __call__(self, x: Float[Array, "n in"]) -> LSTMState:
        return _run(self.forward, x, reverse=False), _run(self.backward, x, reverse=True)


def _run(cell: LSTMCell, x: Float[Array, "n in"], *, reverse: bool) -> Float[Array, "n hidden"]:
    drives = cell.drive(x)

    def step(state: LSTMState, drive: Float[Array, " gates"]) -> tuple[LSTMState, Float[Array, " hidden"]]:
        output, c = cell.step(drive[None], *state)
        return (output, c), output[0]

    start = jnp.zeros((1, cell.size), drives.dtype)
    return jax.lax.scan(step, (start, start), drives, reverse=reverse)[1]


class AttLSTM(eqx.Module):
    r"""An LSTM that reads a set by attention before it answers: the query side of full context embeddings.

    With the same input $x$ at every step, $h_0 = c_0 = r_0 = 0$ and for $k = 1, \dots, K$

    $$\hat h_k, c_k = \operatorname{LSTM}(x, [h_{k-1}, r_{k-1}], c_{k-1}), \quad h_k = \hat h_k + x, \quad
      r_k = \sum_i \operatorname{softmax}_i(h_k \cdot m_i)\, m_i$$

    **Arguments:**

    - `size`: features of the queries and of the memory.
    - `num_steps`: processing steps $K$, at least 1. The first one has read nothing yet, so one step never
      looks at the memory. Default 3, Ravi and Larochelle's.
    - `key`: random key of the weights.

    **Returns** (of a call with queries `[query, size]` and memory `[n, size]`): $h_K$, `[query, size]`. It
    does not depend on the order of the memory, and a query's row on no other query.

    **Raises:** `ValueError` for `num_steps` below 1, or where the queries or the memory have another size.

    **Source:** Vinyals et al. 2016, *Matching Networks for One Shot Learning*, equations 3 to 6,
    https://arxiv.org/abs/1606.04080. There $r_0$ is not stated; Ravi and Larochelle start from the memory's
    mean.

    >>> import jax, jax.numpy as jnp
    >>> AttLSTM(2, num_steps=3, key=jax.random.key(0))(jnp.ones((4, 2)), jnp.ones((5, 2))).shape
    (4, 2)
    """

    cell: LSTMCell
    num_steps: int = eqx.field(static=True)

    @keyed
    def __init__(self, size: int, *, num_steps: int = 3, key: PRNGKey):
        if num_steps < 1:
            raise ValueError(f"num_steps is the number of processing steps, at least 1, got {num_steps}.")
        self.cell = LSTMCell(size, size, recurrent_size=2 * size, key=key)
        self.num_steps = num_steps

    @typed
    def __call__(self, x: Float[Array, "query d"], memory: Float[Array, "n d"]) -> Float[Array, "query d"]:
        drive = self.cell.drive(x)
        zeros = jnp.zeros_like(x)

        def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
            h, read, c = state
            output, c = self.cell.step(drive, jnp.concatenate([h, read], axis=1), c)
            h = output + x
            read = jax.nn.softmax(h @ memory.T, axis=1) @ memory
            return (h, read, c), None

        (h, _, _), _ = jax.lax.scan(step, (zeros, zeros, zeros), None, length=self.num_steps)
        return h
