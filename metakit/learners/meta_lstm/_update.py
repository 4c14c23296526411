"""The learned update rule: an LSTM whose cell state is the parameters."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metakit._hyperparameter import Hyperparameter
from metakit._tree import as_float_array
from metakit._typecheck import keyed
from metakit._types import PRNGKey, Scalar
from metakit.learners._options import positive, require_sizes
from metakit.nn import LSTMCell

from ._preprocess import preprocess


class Gate(eqx.Module):
    r"""One gate of the cell that holds the parameters, the same for every coordinate.

    $$\tilde g_t = w \cdot [h_t,\, \theta_{t-1},\, \tilde g_{t-1}] + b, \qquad g_t = \sigma(\tilde g_t)$$

    **Arguments:** `weight`, `[hidden + 2]`; `bias`, a scalar.

    **Returns** (of a call with $h_t$ `[p, hidden]`, $\theta_{t-1}$ `[p]` and $\tilde g_{t-1}$ `[p]`): $\tilde g_t$,
    `[p]`, before the sigmoid.

    >>> import jax.numpy as jnp
    >>> Gate(jnp.zeros(22), jnp.ones(()))(jnp.ones((3, 20)), jnp.ones(3), jnp.ones(3)).tolist()
    [1.0, 1.0, 1.0]
    """

    weight: Float[Array, " hidden_and_two"]
    bias: Scalar

    def __call__(
        self, hidden: Float[Array, "p hidden"], params: Float[Array, " p"], before: Float[Array, " p"]
    ) -> Float[Array, " p"]:
        of_hidden, of_params, of_before = self.weight[:-2], self.weight[-2], self.weight[-1]
        return hidden @ of_hidden + of_params * params + of_before * before + self.bias


class UpdateState(eqx.Module):
    r"""What the update rule remembers of each of $p$ coordinates.

    - `hidden`, `cell`: of the LSTM, `[p, hidden]` each.
    - `forget`, `input`: the gates of the last step, before the sigmoid, `[p]` each.

    >>> import jax, jax.numpy as jnp
    >>> LearnedUpdate(key=jax.random.key(0)).init(jnp.ones(3)).hidden.shape
    (3, 20)
    """

    hidden: Float[Array, "p hidden"]
    cell: Float[Array, "p hidden"]
    forget: Float[Array, " p"]
    input: Float[Array, " p"]


class LearnedUpdate(eqx.Module):
    r"""An update rule that is learned: an LSTM reads each coordinate's gradient and the loss, two gates move it.

    $$h_t = \operatorname{LSTM}\bigl([\operatorname{pre}(L_t), \operatorname{pre}(g_t)]\bigr), \qquad
      \theta_t = \sigma(\tilde f_t) \odot \theta_{t-1} - \sigma(\tilde\imath_t) \odot g_t$$

    with the gates $\tilde f$ and $\tilde\imath$ of `Gate`. All weights are shared by all coordinates, so there are few:
    2,000 in the LSTM and 46 in the gates. Each coordinate has its own state.

    **Arguments:**

    - `hidden_size`: units of the LSTM, at least 1; default 20.
    - `p`: of `preprocess`; default fixed at 10.
    - `forget_bias`: range, uniform, in which the forget gate's bias starts; default 4 to 5, so that 0.982 to 0.993 of
      the parameters stay.
    - `input_bias`: range of the input gate's; default -5 to -4: rates of 0.0067 to 0.018.
    - `key`: random key; weights start uniform in -0.01 to 0.01.

    **Raises:** `ValueError` for a `hidden_size` below 1, a range whose ends are the wrong way round, or a `p` that is
    not one number.

    **Source:** Ravi and Larochelle 2017, "Optimization as a Model for Few-Shot Learning", section 3,
    https://openreview.net/forum?id=rJY0-Kcll, in the form of its code, https://github.com/twitter/meta-learning-lstm:
    two layers, an LSTM below the gates, which see their own last value *before* the sigmoid. The code divides the
    gradient of the mean loss by the batch size once more; here it does not, so rates mean what they mean in SGD.

    >>> import jax, jax.numpy as jnp
    >>> update = LearnedUpdate(key=jax.random.key(0))
    >>> theta, gradient = jnp.ones(3), jnp.array([0.5, 0.0, -0.5])
    >>> moved, state = update(jnp.ones(()), gradient, theta, update.init(theta))
    >>> moved.shape
    (3,)
    """

    lstm: LSTMCell
    forget: Gate
    input: Gate
    p: Hyperparameter

    @keyed
    def __init__(
        self,
        hidden_size: int = 20,
        *,
        p: Hyperparameter | ArrayLike = 10.0,
        forget_bias: tuple[float, float] = (4.0, 5.0),
        input_bias: tuple[float, float] = (-5.0, -4.0),
        key: PRNGKey,
    ):
        for name, (low, high) in (("forget_bias", forget_bias), ("input_bias", input_bias)):
            if not low <= high:
                raise ValueError(f"{name} must be a range (low, high), got ({low}, {high}).")
        require_sizes(hidden_size=hidden_size)
        lstm_key, forget_key, input_key = jax.random.split(key, 3)
        lstm = LSTMCell(4, hidden_size, key=lstm_key)
        leaves, structure = jax.tree.flatten(lstm)
        keys = jax.random.split(lstm_key, len(leaves))
        self.lstm = jax.tree.unflatten(structure, [_small(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
        self.forget = _gate(forget_key, hidden_size, forget_bias)
        self.input = _gate(input_key, hidden_size, input_bias)
        self.p = positive("p", p)

    @staticmethod
    def sgd(rate: float, hidden_size: int = 20, *, key: PRNGKey) -> "LearnedUpdate":
        """The update whose gates are fixed where it is exactly gradient descent; training takes the rate from there.

        Its forget gate is 1 to the last digit, so saturated that it has no gradient: give
        `forget_bias` a smaller number to have it learned.

        **Arguments:** `rate`, between 0 and 1; `hidden_size` and `key`, as in the constructor.

        **Returns:** a `LearnedUpdate` with zero weights in the gates.

        **Raises:** `ValueError` for a rate that is no sigmoid.
        """
        if not 0 < rate < 1:
            raise ValueError(f"rate must lie between 0 and 1, where a gate can be, got {rate}.")
        bias = math.log(rate) - math.log1p(-rate)
        update = LearnedUpdate(hidden_size, forget_bias=(40.0, 40.0), input_bias=(bias, bias), key=key)
        weights = (update.forget.weight, update.input.weight)
        return eqx.tree_at(lambda u: (u.forget.weight, u.input.weight), update, tuple(map(jnp.zeros_like, weights)))

    def init(self, params: Float[Array, " p"]) -> UpdateState:
        """The state before the first step: zeros."""
        coordinates, zero = params.shape[0], jnp.zeros_like(params)
        hidden = jnp.zeros((coordinates, self.lstm.size), params.dtype)
        return UpdateState(hidden, hidden, zero, zero)

    def __call__(
        self, loss: Scalar, gradient: Float[Array, " p"], params: Float[Array, " p"], state: UpdateState
    ) -> tuple[Float[Array, " p"], UpdateState]:
        """One step."""
        # The rule's own numbers may be of another precision than the parameters that it moves.
        rule = jax.tree.map(lambda leaf: leaf.astype(params.dtype), self)
        of_loss = jnp.broadcast_to(preprocess(loss, rule.p.value)[None], (params.shape[0], 2))
        inputs = jnp.concatenate([of_loss.astype(params.dtype), preprocess(gradient, rule.p.value)], axis=1)
        hidden, cell = rule.lstm(inputs, state.hidden, state.cell)
        forget = rule.forget(hidden, params, state.forget)
        input = rule.input(hidden, params, state.input)
        moved = jax.nn.sigmoid(forget) * params - jax.nn.sigmoid(input) * gradient
        return moved, UpdateState(hidden, cell, forget, input)


def _small(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, jax.dtypes.canonicalize_dtype(jnp.float64), -0.01, 0.01)


def _gate(key: PRNGKey, hidden_size: int, bias: tuple[float, float]) -> Gate:
    weight_key, bias_key = jax.random.split(key)
    low, high = map(as_float_array, bias)
    return Gate(
        _small(weight_key, (hidden_size + 2,)), low + (high - low) * jax.random.uniform(bias_key, (), low.dtype)
    )
