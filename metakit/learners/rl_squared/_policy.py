"""A recurrent policy: any network over sequences, between a way to read tokens and two heads."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit import nn
from metakit._environment import Actions, Discrete
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey, Scalar
from metakit.rl import AbstractDistribution, AbstractRecurrentPolicy, Categorical, DiagonalGaussian, Token


@typed
def token_size(observation_shape: tuple[int, ...], actions: Actions) -> int:
    """Features of a token: how many a sequence model must read to stand behind a `RecurrentPolicy`.

    **Arguments:** `observation_shape` and `actions`, the environment's.

    **Returns:** the numbers in an observation and in an encoded action, and two for the reward and the end of an
    episode.

    >>> import metakit as mk
    >>> mk.rl_squared.token_size((10,), mk.Discrete(5))
    17
    """
    return math.prod(observation_shape) + actions.encoded_size + 2


class RecurrentPolicy(AbstractRecurrentPolicy):
    r"""A policy on a network over sequences.

    $$h_t = f_\theta(x_1, \dots, x_t), \qquad x_t = (o_t, a_{t-1}, r_{t-1}, d_{t-1}), \qquad
      \pi_t = \pi(\cdot \mid W h_t + b), \qquad V_t = v^\top h_t + c$$

    The network is any `mk.nn.SequenceModel`: `mk.nn.GRU`, or a stack of causal convolutions and attention (SNAIL).

    **Arguments:**

    - `network`: a sequence model that reads tokens of `token_size(observation_shape, actions)` features. One that
      remembers a limited number of tokens needs one place for each step of a trial, and one more to `predict` after a
      whole trial.
    - `observation_shape`, `actions`: the environment's. For `mk.Continuous` actions the head gives the mean, and a
      weight the logarithm of the standard deviation, which starts at 0.
    - `key`: random key of the heads. The policy's is small (standard deviation 0.01), so that it starts out nearly
      uniform; the value's is zero.

    **Raises:** `TypeError` for something that is no sequence model; `ValueError` when it reads tokens of another size.

    **Source:** Duan et al. 2016, "RL^2", section 2.2, https://arxiv.org/abs/1611.02779

    >>> import jax, metakit as mk
    >>> shape, actions = (10,), mk.Discrete(5)
    >>> gru = mk.nn.GRU(mk.rl_squared.token_size(shape, actions), 8, key=jax.random.key(0))
    >>> policy = mk.rl_squared.RecurrentPolicy(gru, shape, actions, key=jax.random.key(1))
    >>> policy.actor.weight.shape, policy.critic.weight.shape
    ((8, 5), (8, 1))
    """

    network: Any
    actor: nn.Linear
    critic: nn.Linear
    log_std: Float[Array, " size"] | None
    actions: Actions = eqx.field(static=True)
    observation_shape: tuple[int, ...] = eqx.field(static=True)

    @keyed
    def __init__(self, network: Any, observation_shape: tuple[int, ...], actions: Actions, *, key: PRNGKey):
        if not isinstance(network, nn.SequenceModel):
            raise TypeError(
                f"network must be an mk.nn.SequenceModel with in_size, out_size, start, step and read, such as "
                f"mk.nn.GRU; got {type(network).__name__}."
            )
        needed = token_size(tuple(observation_shape), actions)
        if network.in_size != needed:
            raise ValueError(
                f"network must read tokens of {needed} features (observation {list(observation_shape)}, action "
                f"{actions.encoded_size}, reward, end of episode), got in_size={network.in_size}. "
                "mk.rl_squared.token_size counts them."
            )
        self.network = network
        self.actions, self.observation_shape = actions, tuple(observation_shape)
        actor_key, critic_key = jax.random.split(key)
        self.actor = nn.Linear(network.out_size, actions.size, weight_init=nn.small_truncated_normal, key=actor_key)
        self.critic = nn.Linear(network.out_size, 1, weight_init=nn.zeros, key=critic_key)
        self.log_std = None if isinstance(actions, Discrete) else jnp.zeros_like(self.actor.bias)

    def start(self) -> Any:
        """The network's memory before a trial."""
        return self.network.start()

    def step(self, state: Any, token: Token) -> tuple[Any, AbstractDistribution, Scalar]:
        """One step of a trial."""
        state, features = self.network.step(state, self._features(token, ()))
        distribution, values = self._heads(features[None])
        return state, jax.tree.map(lambda leaf: leaf[0], distribution), values[0]

    def read(self, tokens: Token) -> tuple[Any, AbstractDistribution, Float[Array, " steps"]]:
        """A whole trial."""
        state, features = self.network.read(self._features(tokens, tokens.reward.shape))
        return state, *self._heads(features)

    def _features(self, token: Token, lead: tuple[int, ...]) -> Array:
        if token.observation.shape[len(lead) :] != self.observation_shape:
            raise ValueError(
                f"the policy was built for observations of shape {list(self.observation_shape)}, got "
                f"{list(token.observation.shape[len(lead) :])}."
            )
        observation = token.observation.reshape(*lead, -1)
        return jnp.concatenate([observation, token.action, token.reward[..., None], token.done[..., None]], axis=-1)

    def _heads(self, features: Float[Array, "n d"]) -> tuple[AbstractDistribution, Float[Array, " n"]]:
        outputs = self.actor(features)
        values = self.critic(features)[:, 0]
        if self.log_std is None:
            return Categorical(outputs), values
        return DiagonalGaussian(outputs, jnp.broadcast_to(self.log_std, outputs.shape)), values


@typed
def gru_policy(observation_shape: tuple[int, ...], actions: Actions, size: int, *, key: PRNGKey) -> RecurrentPolicy:
    """The published policy: a GRU and two linear heads.

    **Arguments:**

    - `observation_shape`, `actions`: the environment's.
    - `size`: features of the hidden state; 256 published.
    - `key`: random key of the weights.

    **Returns:** a `RecurrentPolicy`. The paper has no value head here but a second GRU; with one network both are
    learnt together.

    >>> import jax, metakit as mk
    >>> mk.rl_squared.gru_policy((1,), mk.Discrete(5), 8, key=jax.random.key(0)).network.out_size
    8
    """
    network_key, head_key = jax.random.split(key)
    network = nn.GRU(token_size(observation_shape, actions), size, key=network_key)
    return RecurrentPolicy(network, observation_shape, actions, key=head_key)
