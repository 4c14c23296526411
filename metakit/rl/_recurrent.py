"""Policies with a memory: what they see, and what they must offer."""

import abc
import contextlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._environment import Actions
from metakit._typecheck import typed
from metakit._types import Scalar

from ._distributions import AbstractDistribution
from ._trajectories import Trajectories, check_actions


class Token(eqx.Module):
    r"""What a recurrent policy sees at one step: $(o_t, a_{t-1}, r_{t-1}, d_{t-1})$.

    At the first step of a trial the last three are zeros. They are *not* reset between the episodes of a trial.

    **Arguments:** made by `mk.rl.trial` and `mk.rl.tokens`; all floating-point, with any leading axes.

    - `observation`: `[*observation]`.
    - `action`: the action before, encoded: one-hot for `mk.Discrete`.
    - `reward`: the reward before.
    - `done`: 1 if that step ended its episode, else 0.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.rl.Token(jnp.ones(3), jnp.zeros(2), jnp.zeros(()), jnp.zeros(())).action.shape
    (2,)
    """

    observation: Float[Array, "*observation"]
    action: Float[Array, "*action"]
    reward: Float[Array, "*lead"]
    done: Float[Array, "*lead"]


class AbstractRecurrentPolicy(eqx.Module):
    """A policy that remembers: the same network as one step at a time and as a whole sequence.

    To write one, subclass it with the environment's `actions` and three pure methods on *one* trial:

    - `start() -> state`: the memory before a trial.
    - `step(state, token) -> (state, distribution, value)`: one step; no array has a leading axis.
    - `read(tokens) -> (state, distributions, values)`: a whole trial from its beginning, every array `[steps, ...]`,
      and the memory of having read it. It must equal `step` applied one by one; it is what is differentiated.

    `value` is the policy's estimate of the discounted sum of the trial's rewards from here on.
    """

    actions: eqx.AbstractVar[Actions]

    @abc.abstractmethod
    def start(self) -> Any:
        """The memory before a trial."""

    @abc.abstractmethod
    def step(self, state: Any, token: Token) -> tuple[Any, Any, Scalar]:
        """The next memory, the distribution over actions, and the value."""

    @abc.abstractmethod
    def read(self, tokens: Token) -> tuple[Any, Any, Float[Array, " steps"]]:
        """The memory after a trial, and the distributions over actions and the values at every step of it."""


def first_token(observation: Any, actions: Actions) -> Token:
    """Of a trial: nothing was done yet. `observation` gives the shape and the dtype."""
    dtype = observation.dtype
    return Token(
        jnp.zeros(observation.shape, dtype),
        jnp.zeros((actions.encoded_size,), dtype),
        jnp.zeros((), dtype),
        jnp.zeros((), dtype),
    )


def next_token(observation: Array, action: Any, reward: Array, done: Array, actions: Actions) -> Token:
    """After a step."""
    dtype = observation.dtype
    return Token(observation, actions.encode(action, dtype), reward.astype(dtype), done.astype(dtype))


def tokens(trajectories: Trajectories, actions: Actions, name: str = "the trajectories") -> tuple[Token, Token]:
    """What a recurrent policy saw at each step of a trial, and what of the last step it would see next.

    **Arguments:**

    - `trajectories`: of one trial, in order, `[episodes, horizon, ...]`.
    - `actions`: the environment's.
    - `name`: of the trajectories in an error.

    **Returns:** a `Token` of arrays `[episodes * horizon, ...]`; and one of the step after, whose observation is zeros,
    to be filled in.

    **Raises:** `ValueError` when the trajectories hold other actions, also in steps that did not take place: a memory
    reads those, too. In compiled code, where nothing can raise, one out of range is NaN in its token.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> seen, _ = mk.rl.tokens(mk.rl.rollout(policy, bandit, jax.random.key(2), num_episodes=5), bandit.actions)
    >>> seen.action.shape, seen.done.tolist()
    ((5, 2), [0.0, 1.0, 1.0, 1.0, 1.0])
    """
    check_actions(trajectories.actions, actions, name=name)
    over = ~trajectories.mask[:, 1:]
    done = jnp.concatenate([over, jnp.ones_like(trajectories.mask[:, :1])], axis=1)

    def steps(leaf: Array) -> Array:
        return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])

    observations = steps(trajectories.observations)
    after = next_token(observations, steps(trajectories.actions), steps(trajectories.rewards), steps(done), actions)
    first = first_token(jax.eval_shape(lambda x: x[0], observations), actions)

    def shift(start: Array, later: Array) -> Array:
        return jnp.concatenate([start[None], later[:-1]])

    seen = jax.tree.map(shift, first, after)
    last = jax.tree.map(lambda leaf: leaf[-1], after)
    return eqx.tree_at(lambda t: t.observation, seen, observations), eqx.tree_at(
        lambda t: t.observation, last, first.observation
    )


@typed
def read_trial(
    policy: AbstractRecurrentPolicy, trajectories: Trajectories, name: str = "the trajectories"
) -> tuple[Any, Token, AbstractDistribution, Float[Array, "episodes horizon"]]:
    """Read a trial into a policy's memory, from its beginning.

    **Arguments:**

    - `policy`: an `AbstractRecurrentPolicy`.
    - `trajectories`: of one trial, in order, `[episodes, horizon, ...]`.
    - `name`: of the trajectories in an error.

    **Returns:** the memory after them; the `Token` it would see next, as in `tokens`; and the distributions over
    actions and the values at every step, all `[episodes, horizon, ...]`.

    **Raises:** `ValueError` when the policy was built for other observations or actions (in compiled code an action out
    of range makes the memory NaN), or when there are more steps than its memory holds.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> trajectories, _ = mk.rl.trial(policy, bandit, jax.random.key(2), num_episodes=5)
    >>> state, _, _, values = mk.rl.read_trial(policy, trajectories)
    >>> state.shape, values.shape
    ((8,), (5, 1))
    """
    seen, last = tokens(trajectories, policy.actions, name)
    lead = trajectories.rewards.shape
    with reading(f"{name} of {lead[0]} episodes * {lead[1]} steps = {lead[0] * lead[1]} tokens"):
        state, distribution, values = policy.read(seen)
    distribution, values = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), (distribution, values))
    return state, last, distribution, values


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Say of what a network complains, which knows nothing of trials."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the policy cannot read {what}: {error}") from error
