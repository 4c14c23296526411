"""Acting in an environment: episodes side by side, or one after another with a memory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metakit._environment import AbstractEnvironment, Transition, check_horizon
from metakit._typecheck import typed
from metakit._types import PRNGKey

from ._policies import check_fits
from ._recurrent import AbstractRecurrentPolicy, Token, first_token, next_token, reading
from ._trajectories import Trajectories, as_data


@typed
def rollout(
    policy: Callable[..., Any], environment: AbstractEnvironment, key: PRNGKey, *, num_episodes: int
) -> Trajectories:
    r"""Independent episodes of a policy without memory.

    $$s_0 \sim \mathrm{reset}, \qquad a_t \sim \pi(\cdot \mid o_t), \qquad (s_{t+1}, o_{t+1}, r_t) \sim
    \mathrm{step}(s_t, a_t)$$

    All episodes go side by side, in one scan over the steps. No gradient flows through it: what was collected is data.

    **Arguments:**

    - `policy`: called with observations `[n, *observation]`, returns a distribution of `n` entries.
    - `environment`: one task.
    - `key`: of everything random in it.
    - `num_episodes`: at least 1.

    **Returns:** `Trajectories` of `[num_episodes, environment.horizon]`.

    **Raises:** `ValueError` for `num_episodes` or a horizon below 1, for a policy whose actions are not the
    environment's, or for an environment that breaks its own word about observations; `TypeError` for a policy that
    returns no distribution.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 8, 1, key=jax.random.key(0)), 2)
    >>> task = mk.tasks.Navigations(horizon=10)(jax.random.key(1))
    >>> mk.rl.rollout(policy, task, jax.random.key(2), num_episodes=5).observations.shape
    (5, 10, 2)
    """
    _check(environment, num_episodes)
    act = as_data(policy)
    reset_key, steps_key = jax.random.split(key)
    states, observations = jax.vmap(environment.reset)(jax.random.split(reset_key, num_episodes))
    _check_observation(observations[0], environment)

    def step(carry: Any, step_key: PRNGKey) -> tuple[Any, Any]:
        states, observations, alive = carry
        act_key, environment_key = jax.random.split(step_key)
        distribution = act(observations)
        check_fits(distribution, environment.actions)
        actions = distribution.sample(act_key)
        keys = jax.random.split(environment_key, num_episodes)
        moved = jax.vmap(lambda *args: _move(environment, *args))(states, observations, alive, actions, keys)
        seen = (observations, actions, moved.reward, alive, distribution)
        return (moved.state, moved.observation, alive & ~moved.done), seen

    start = (states, observations, jnp.ones((num_episodes,), bool))
    _, seen = jax.lax.scan(step, start, jax.random.split(steps_key, environment.horizon))
    return as_data(Trajectories(*jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), seen)))


@typed
def trial(
    policy: AbstractRecurrentPolicy, environment: AbstractEnvironment, key: PRNGKey, *, num_episodes: int
) -> tuple[Trajectories, Float[Array, "episodes horizon"]]:
    """Episodes one after another, with a memory that is carried from each to the next.

    The memory starts anew with the trial and at no other time; the environment starts anew with every episode. At each
    step the policy sees a `Token`: the observation, and what it did and got in the step before, also across the border
    between episodes. After an episode that ended early the steps up to its horizon are idle: the policy goes on seeing
    the last observation with a reward of 0 and `done`, and the mask says that nothing took place.

    **Arguments:**

    - `policy`: a recurrent policy.
    - `environment`: one task.
    - `key`: of everything random in it.
    - `num_episodes`: of the trial, at least 1.

    **Returns:** `Trajectories` of `[num_episodes, environment.horizon]`, in the order in which they happened, and the
    policy's own values of every step. No gradient flows through either.

    **Raises:** as `rollout`; and as the policy's `read`, when its memory is too short for the whole trial.

    **Source:** Duan et al. 2016, "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning", section 2.2,
    https://arxiv.org/abs/1611.02779

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy(bandit.observation_shape, bandit.actions, 8, key=jax.random.key(1))
    >>> trajectories, values = mk.rl.trial(policy, bandit, jax.random.key(2), num_episodes=10)
    >>> trajectories.rewards.shape, values.shape
    ((10, 1), (10, 1))
    """
    _check(environment, num_episodes)
    if policy.actions != environment.actions:  # before the policy reads tokens of another size
        raise ValueError(
            f"the policy acts in {policy.actions}, but the environment's actions are {environment.actions}. Build the "
            "policy with the environment's own: environment.actions."
        )
    policy, horizon = as_data(policy), environment.horizon

    def episode(carry: Any, episode_key: PRNGKey) -> tuple[Any, Any]:
        memory, token = carry
        reset_key, steps_key = jax.random.split(episode_key)
        state, observation = environment.reset(reset_key)
        token = eqx.tree_at(lambda t: t.observation, token, observation)

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            memory, state, token, alive = carry
            last, step_key = now
            act_key, environment_key = jax.random.split(step_key)
            memory, distribution, value = policy.step(memory, token)
            check_fits(distribution, environment.actions)
            action = distribution.sample(act_key)
            moved = _move(environment, state, token.observation, alive, action, environment_key)
            seen = (token.observation, action, moved.reward, alive, distribution), value
            alive = alive & ~moved.done
            token = next_token(moved.observation, action, moved.reward, ~alive | last, environment.actions)
            return (memory, moved.state, token, alive), seen

        last = jnp.arange(horizon) == horizon - 1
        start = (memory, state, token, jnp.ones((), bool))
        (memory, _, token, _), seen = jax.lax.scan(step, start, (last, jax.random.split(steps_key, horizon)))
        return (memory, token), seen

    _, shape = eqx.filter_eval_shape(environment.reset, key)
    _check_observation(shape, environment)
    first = first_token(shape, environment.actions)
    _check_memory(policy, first, num_episodes * horizon)
    start = (policy.start(), first)
    _, (seen, values) = jax.lax.scan(episode, start, jax.random.split(key, num_episodes))
    return as_data((Trajectories(*seen), values))


def _move(
    environment: AbstractEnvironment, state: Any, observation: Array, alive: Bool[Array, ""], action: Any, key: PRNGKey
) -> Transition:
    """One step of one episode; one that is over stays where it is."""
    moved = environment.step(state, action, key)

    def choose(new: Any, old: Any) -> Any:
        return jnp.where(alive, new, old)

    return Transition(
        jax.tree.map(choose, moved.state, state),
        choose(moved.observation, observation),
        choose(moved.reward, jnp.zeros_like(moved.reward)),
        moved.done | ~alive,
    )


def _check(environment: AbstractEnvironment, num_episodes: int) -> None:
    check_horizon(environment.horizon)
    if isinstance(num_episodes, bool) or num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}; an empty rollout says nothing.")


def _check_memory(policy: AbstractRecurrentPolicy, token: Token, steps: int) -> None:
    """A memory too short for the trial only shows in `read`: step by step it would fill up in silence."""
    whole = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), token)
    with reading(f"this trial of num_episodes * horizon = {steps} steps"):
        eqx.filter_eval_shape(lambda policy, tokens: policy.read(tokens), policy, whole)


def _check_observation(observation: Any, environment: AbstractEnvironment) -> None:
    if tuple(observation.shape) != tuple(environment.observation_shape):
        raise ValueError(
            f"{type(environment).__name__} promises observations of shape {list(environment.observation_shape)}, and "
            f"reset gives {list(observation.shape)}."
        )
