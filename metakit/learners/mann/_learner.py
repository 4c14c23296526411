"""MANN's learner: the controller and the heads that address its memory."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metakit import losses, nn
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._static import as_node
from metakit._typecheck import keyed
from metakit._types import PRNGKey
from metakit.learners._options import fraction, require_sizes

from ._memory import State, access, blank

_WRITES = ("addition", "key")


class MANN(eqx.Module):
    r"""A memory-augmented neural network with least-recently-used access.

    It reads a sequence in which **labels come one step late**, $(x_t, y_{t-1})$ with $y_0 = 0$, and predicts
    $y_t$ at every step. To do so it must keep $x_{t-1}$ until its label arrives, bind both in memory, and
    find the slot again when the class is next presented.

    The controller is an LSTM that also sees what was read last, and its output addresses the memory $M$ with
    $R$ heads:

    $$h_t = \operatorname{LSTM}([x_t, y_{t-1}], [h_{t-1}, r_{t-1}]), \quad
      k = \tanh(W_k h_t), \quad a = \tanh(W_a h_t), \quad g = \sigma(W_g h_t)$$
    $$w^w = g\, w^r_{t-1} + (1 - g)\, w^{lu}, \qquad M_t = \tilde M_{t-1} + \textstyle\sum_r w^w_r a_r^\top$$
    $$w^r_t = \operatorname{softmax} \cos(k, M_t), \quad r_t = w^r_t M_t, \quad
      w^u_t = \gamma w^u_{t-1} + \textstyle\sum_r (w^r_t + w^w), \quad z_t = W_o [h_t, r_t]$$

    $w^{lu}$ gives each head one of the $R$ slots of lowest usage $w^u_{t-1}$, and $\tilde M$ is the memory
    with the least used one erased. The choice of slots has no derivative.

    **Arguments:**

    - `in_size`: numbers of one example; images are flattened (400 for 20x20).
    - `way`: number of classes.
    - `hidden`: units of the controller, default 200.
    - `slots`, `width`: rows and columns of the memory, default 128 and 40.
    - `heads`: $R$, default 4, at most `slots`.
    - `write`: `"addition"` (default): a vector $a$ of its own is written, as in the code that this follows;
      `"key"`: the key $k$ is written, as in the paper.
    - `decay`: $\gamma$, from 0 to 1, a number or a `Hyperparameter`; default fixed at 0.95.
    - `loss`: `loss(logits, labels, *, reduction)`; default `mk.losses.cross_entropy`.
    - `key`: random key of the initial weights.

    **Raises:** `ValueError` for a size below 1, more heads than slots, an unknown `write`, or a `decay` that
    is not one number from 0 to 1.

    >>> import jax
    >>> MANN(400, 5, key=jax.random.key(0)).start().memory.shape
    (128, 40)

    **Source:** Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", 2016, sections 3 and
    3.1, https://proceedings.mlr.press/v48/santoro16.html, in the form of
    https://github.com/tristandeleu/ntm-one-shot. There, and here, the gate $g$ comes from the controller, where
    the paper learns one number; and each head writes to a slot of its own, where the paper's heads share
    the set of the $R$ least used. The LSTM's forget bias starts at 1.
    """

    controller: nn.LSTMCell
    key: nn.Linear
    addition: nn.Linear | None
    gate: nn.Linear
    output: nn.Linear
    decay: Hyperparameter
    loss: losses.Loss = eqx.field(converter=as_node)
    in_size: int = eqx.field(static=True)
    slots: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_size: int,
        way: int,
        *,
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        heads: int = 4,
        write: Literal["addition", "key"] | str = "addition",
        decay: Hyperparameter | ArrayLike = 0.95,
        loss: losses.Loss = losses.cross_entropy,
        key: PRNGKey,
    ):
        require_sizes(in_size=in_size, way=way, hidden=hidden, slots=slots, width=width, heads=heads)
        if heads > slots:
            raise ValueError(
                f"heads must be at most slots={slots}, since each writes to a slot of its own, got {heads}."
            )
        require_option("write", write, _WRITES)
        keys = jax.random.split(key, 5)

        def linear(size_in: int, size_out: int, weight_key: PRNGKey) -> nn.Linear:
            return nn.Linear(size_in, size_out, weight_init=nn.xavier_uniform, key=weight_key)

        self.controller = nn.LSTMCell(in_size + way, hidden, recurrent_size=hidden + heads * width, key=keys[0])
        self.key = linear(hidden, heads * width, keys[1])
        self.addition = linear(hidden, heads * width, keys[2]) if write == "addition" else None
        self.gate = linear(hidden, heads, keys[3])
        self.output = linear(hidden + heads * width, way, keys[4])
        self.decay = fraction("decay", decay)
        self.loss = loss
        self.in_size, self.slots, self.width, self.heads = in_size, slots, width, heads

    @property
    def way(self) -> int:
        """Number of classes."""
        return self.output.weight.shape[1]

    def start(self) -> State:
        """The state before a sequence: a blank memory."""
        bias = self.controller.bias
        return blank(self.heads, self.slots, self.width, self.controller.size, bias.dtype)

    def step(self, state: State, drive: Float[Array, " gates"]) -> tuple[State, Float[Array, " way"]]:
        """One step, for an input that went through `controller.drive`; the shape of a scan's body."""
        recurrent = jnp.concatenate([state.hidden, state.read])
        hidden, cell = self.controller.step(drive[None], recurrent[None], state.cell[None])
        keys = jnp.tanh(self.key(hidden)).reshape(self.heads, self.width)
        additions = keys
        if self.addition is not None:
            additions = jnp.tanh(self.addition(hidden)).reshape(self.heads, self.width)
        gates = jax.nn.sigmoid(self.gate(hidden))[0]
        state = eqx.tree_at(lambda s: (s.hidden, s.cell), state, (hidden[0], cell[0]))
        state = access(state, keys, additions, gates, self.decay.value.astype(keys.dtype))
        return state, self.output(jnp.concatenate([state.hidden, state.read])[None])[0]
