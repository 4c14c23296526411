"""Random finite Markov decision processes, and their exact solution."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from metakit._environment import AbstractEnvironment, Discrete, Transition, check_horizon, nan_unless
from metakit._tree import as_float_array
from metakit._typecheck import typed
from metakit._types import PRNGKey


class TabularMDP(AbstractEnvironment):
    r"""A Markov decision process with finitely many states, of which every episode starts in state 0.

    $$s' \sim P(\cdot \mid s, a), \qquad r \sim N(m(s, a), \sigma^2)$$

    The observation is the state, one-hot. Episodes last exactly `horizon` steps.

    **Arguments:**

    - `transitions`: $P$, `[states, actions, states]`; the last axis sums to 1.
    - `rewards`: the means $m$, `[states, actions]`.
    - `horizon`: steps of an episode, at least 1, static.
    - `noise`: $\sigma$, default 1.

    **Raises:** `ValueError` for shapes that disagree or a horizon below 1; of `step`, for an action that is none. In
    compiled code, where nothing can raise, that action's reward is NaN.

    >>> import jax, metakit as mk
    >>> mdp = mk.tasks.TabularMDPs()(jax.random.key(0))
    >>> state, observation = mdp.reset(jax.random.key(1))
    >>> mdp.step(state, 2, jax.random.key(2)).observation.sum().item()
    1.0
    """

    transitions: Float[Array, "states actions states"]
    rewards: Float[Array, "states actions"]
    noise: Float[Array, ""]
    horizon: int = eqx.field(static=True)

    def __init__(self, transitions: Any, rewards: Any, horizon: int, noise: ArrayLike = 1.0):
        check_horizon(horizon)
        self.transitions, self.rewards = as_float_array(transitions), as_float_array(rewards)
        self.noise = as_float_array(noise)
        self.horizon = horizon
        states = self.transitions.shape[-1]
        if self.rewards.ndim != 2 or self.transitions.shape != (*self.rewards.shape, states):
            raise ValueError(
                "transitions must be [states, actions, states] and rewards [states, actions], got "
                f"{list(self.transitions.shape)} and {list(self.rewards.shape)}."
            )
        if self.rewards.shape[0] != states:
            raise ValueError(f"transitions must lead to the states they start from, got {self.transitions.shape}.")

    @property
    def actions(self) -> Discrete:
        """As many in every state."""
        return Discrete(self.rewards.shape[-1])

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """One number for each state."""
        return (self.transitions.shape[-1],)

    def reset(self, key: PRNGKey) -> tuple[Int[Array, ""], Float[Array, " states"]]:
        del key
        state = jnp.zeros((), jnp.int32)
        return state, self._observe(state)

    @typed
    def step(self, state: Int[Array, ""], action: Any, key: PRNGKey) -> Transition:
        valid = self.actions.check(action)
        chosen = jnp.clip(jnp.asarray(action), 0, self.actions.size - 1)
        state_key, reward_key = jax.random.split(key)
        after = jax.random.categorical(state_key, jnp.log(self.transitions[state, chosen])).astype(jnp.int32)
        noise = self.noise * jax.random.normal(reward_key, (), self.rewards.dtype)
        reward = nan_unless(valid, self.rewards[state, chosen] + noise)
        return Transition(after, self._observe(after), reward, jnp.zeros((), bool))

    def _observe(self, state: Int[Array, ""]) -> Float[Array, " states"]:
        return jax.nn.one_hot(state, self.observation_shape[0], dtype=self.rewards.dtype)


class TabularMDPs(eqx.Module):
    r"""The distribution of random Markov decision processes; `sampler(key)` draws one.

    $$m(s, a) \sim N(1, 1), \qquad P(\cdot \mid s, a) \sim \mathrm{Dirichlet}(1, \dots, 1), \qquad \sigma = 1$$

    **Arguments:** `num_states`, `num_actions` and `horizon`, at least 1 each; 10, 5 and 10 by default, as published.

    **Returns** (of a call): a `TabularMDP`.

    **Raises:** `ValueError` for a count below 1.

    >>> import jax, metakit as mk
    >>> mk.tasks.TabularMDPs()(jax.random.key(0)).transitions.shape
    (10, 5, 10)

    **Source:** Duan et al. 2016, "RL^2", section 3.2, https://arxiv.org/abs/1611.02779
    """

    num_states: int = eqx.field(static=True)
    num_actions: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)

    def __init__(self, num_states: int = 10, num_actions: int = 5, horizon: int = 10):
        if min(num_states, num_actions) < 1:
            raise ValueError(f"num_states and num_actions must be at least 1, got {num_states} and {num_actions}.")
        check_horizon(horizon)
        self.num_states, self.num_actions, self.horizon = num_states, num_actions, horizon

    @typed
    def __call__(self, key: PRNGKey) -> TabularMDP:
        reward_key, transition_key = jax.random.split(key)
        dtype, shape = jnp.result_type(float), (self.num_states, self.num_actions)
        rewards = 1 + jax.random.normal(reward_key, shape, dtype)
        transitions = jax.random.dirichlet(transition_key, jnp.ones((self.num_states,), dtype), shape, dtype)
        return TabularMDP(transitions, rewards, self.horizon)


@typed
def optimal_values(mdp: TabularMDP, discount: ArrayLike = 1.0) -> Float[Array, "horizon_and_end states"]:
    r"""The best expected sum of rewards from each state with each number of steps to go, for who knows the process.

    $$V_H = 0, \qquad V_t(s) = \max_a\ m(s, a) + \gamma \sum_{s'} P(s' \mid s, a)\, V_{t+1}(s')$$

    **Arguments:** `mdp`; `discount`, $\gamma$, default 1.

    **Returns:** $V_t(s)$, `[horizon + 1, states]`. `[0, 0]` is the value of an episode. Its mean over
    `TabularMDPs()` is 21.83; no learner's episode is better on average.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mdp = mk.tasks.TabularMDP(jnp.ones((1, 2, 1)), jnp.array([[1.0, 3.0]]), horizon=4)
    >>> mk.tasks.optimal_values(mdp)[:, 0].tolist()
    [12.0, 9.0, 6.0, 3.0, 0.0]
    """
    discount = as_float_array(discount).astype(mdp.rewards.dtype)

    def back(later: Array, _: None) -> tuple[Array, Array]:
        expected = jnp.matmul(mdp.transitions, later, precision=jax.lax.Precision.HIGHEST)
        values = jnp.max(mdp.rewards + discount * expected, axis=1)
        return values, values

    end = jnp.zeros((mdp.rewards.shape[0],), mdp.rewards.dtype)
    _, values = jax.lax.scan(back, end, None, length=mdp.horizon)
    return jnp.concatenate([values[::-1], end[None]])
