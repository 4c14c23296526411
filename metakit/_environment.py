"""The task of reinforcement learning: something to act in."""

import abc
import dataclasses
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Shaped

from ._types import Flag, PRNGKey, Scalar


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The actions 0 to `size - 1`.

    **Arguments:** `size`, how many there are, at least 1.

    **Raises:** `ValueError` for a size below 1.

    >>> Discrete(5).encoded_size
    5
    """

    size: int

    def __post_init__(self):
        _require_size(self.size)

    @property
    def encoded_size(self) -> int:
        """Numbers in `encode`'s result."""
        return self.size

    def encode(self, actions: Shaped[Array, "*batch"], dtype: Any) -> Float[Array, "*batch size"]:
        """One-hot vectors, as a network reads actions; NaN out of range, where zeros would pass for an action."""
        valid = (actions >= 0) & (actions < self.size)
        return jnp.where(valid[..., None], jax.nn.one_hot(actions, self.size, dtype=dtype), jnp.nan)

    def check(self, action: Any) -> Flag:
        """Whether one action is one of these: a Boolean scalar for use in compiled code, where nothing can raise.

        **Raises:** `ValueError` for an action that is no integer scalar, and, outside compiled code, for one out of
        range.
        """
        action = jnp.asarray(action)
        if action.shape != () or not jnp.issubdtype(action.dtype, jnp.integer):
            raise ValueError(
                f"action must be one integer in 0..{self.size - 1}, got dtype {action.dtype} and shape "
                f"{list(action.shape)}. A batch of actions needs jax.vmap around step."
            )
        valid = (action >= 0) & (action < self.size)
        if not isinstance(valid, Tracer) and not valid:
            raise ValueError(f"action must be in 0..{self.size - 1} ({self.size} actions), got {int(action)}.")
        return valid


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Real vectors `[size]`.

    **Arguments:** `size`, numbers in an action, at least 1.

    **Raises:** `ValueError` for a size below 1.

    >>> Continuous(2).encoded_size
    2
    """

    size: int

    def __post_init__(self):
        _require_size(self.size)

    @property
    def encoded_size(self) -> int:
        """Numbers in `encode`'s result."""
        return self.size

    def encode(self, actions: Float[Array, "*batch size"], dtype: Any) -> Float[Array, "*batch size"]:
        """The vectors themselves."""
        return actions.astype(dtype)

    def check(self, action: Any) -> Flag:
        """Whether one action is finite.

        **Raises:** `ValueError` for an action that is no real vector `[size]`.
        """
        action = jnp.asarray(action)
        if action.shape != (self.size,) or not jnp.issubdtype(action.dtype, jnp.floating):
            raise ValueError(
                f"action must be real numbers of shape [{self.size}], got dtype {action.dtype} and shape "
                f"{list(action.shape)}. A batch of actions needs jax.vmap around step."
            )
        return jnp.all(jnp.isfinite(action))


Actions: TypeAlias = Discrete | Continuous


class Transition(eqx.Module):
    """What one step of an environment leads to.

    **Arguments:**

    - `state`: of the environment, any PyTree of arrays.
    - `observation`: what the policy sees of it.
    - `reward`: a scalar.
    - `done`: whether the episode is over. At the environment's horizon it is over in any case.

    >>> import jax.numpy as jnp
    >>> float(Transition(None, jnp.zeros(1), jnp.ones(()), jnp.ones((), bool)).reward)
    1.0
    """

    state: Any
    observation: Float[Array, "*observation"]
    reward: Scalar
    done: Flag


class AbstractEnvironment(eqx.Module):
    r"""A task to act in: its parameters, together with the pure functions that they are parameters of.

    As `Episode` is the task of supervised learning, an environment is that of reinforcement learning. It is an Equinox
    module whose arrays are what differs between tasks (a goal, the arms' probabilities), so a batch of tasks is the
    same module with a leading axis on every array. Called through the class its functions read
    `reset(environment, key)` and `step(environment, state, action, key)`, all pure. To write one, subclass it with

    - `horizon`: the most steps of an episode, at least 1; static.
    - `actions`: `mk.Discrete(n)` or `mk.Continuous(n)`.
    - `observation_shape`: of one observation.
    - `reset(key) -> (state, observation)`.
    - `step(state, action, key) -> Transition`. It need not look after an episode that is over: rollouts do.
    """

    horizon: eqx.AbstractVar[int]
    actions: eqx.AbstractVar[Actions]
    observation_shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def reset(self, key: PRNGKey) -> tuple[Any, Float[Array, "*observation"]]:
        """The first state of an episode and its observation."""

    @abc.abstractmethod
    def step(self, state: Any, action: Any, key: PRNGKey) -> Transition:
        """What an action in a state leads to."""


def nan_unless(valid: Flag, reward: Scalar) -> Scalar:
    """A reward, or NaN for an action that is none: compiled code cannot raise, and a number would hide it."""
    return jnp.where(valid, reward, jnp.full_like(reward, jnp.nan))


def check_horizon(horizon: int) -> None:
    """An episode needs at least one step."""
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"horizon is the most steps of an episode and must be an int of at least 1, got {horizon!r}.")


def _require_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"size must be an int of at least 1, got {size!r}.")
