"""Environments of gymnax, which need not be installed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._environment import AbstractEnvironment, Actions, Continuous, Discrete, Transition, check_horizon
from metakit._typecheck import typed
from metakit._types import PRNGKey


class GymnaxEnvironment(AbstractEnvironment):
    """A gymnax environment with given parameters, as a task.

    gymnax keeps parameters and functions apart; here they are one module whose arrays are the parameters. Its
    `step_env` and `reset_env` are used, which do not reset on their own, so the horizon is the one given here.

    **Arguments:**

    - `environment`: a gymnax environment, as `gymnax.make(name)[0]` gives it.
    - `params`: its parameters.
    - `horizon`: the most steps of an episode, at least 1.

    **Raises:** `ValueError` for a horizon below 1, or an action or observation space that is neither discrete nor an
    array of real numbers; `TypeError` for something without gymnax's functions. `step` takes what `mk.Discrete` and
    `mk.Continuous` take, in the environment's own units.

    **Source:** Lange 2022, gymnax, https://github.com/RobertTLange/gymnax. Tried with version
    1.0.1; `pip install 'metakit[gymnax]'` installs it, and six, which it imports without asking for it.

    >>> import metakit as mk
    >>> mk.tasks.GymnaxEnvironment(object(), None, horizon=10)
    Traceback (most recent call last):
    ...
    TypeError: environment must be a gymnax environment with reset_env, step_env, ...
    """

    params: Any
    environment: Any = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    actions: Actions = eqx.field(static=True)
    observation_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, environment: Any, params: Any, *, horizon: int):
        _check_interface(environment)
        check_horizon(horizon)
        self.environment = environment
        self.params = jax.tree.map(_strong, params)
        self.horizon = horizon
        with _ordinary_promotion():
            self.actions = _actions(environment.action_space(params))
            self.observation_shape = _shape("observation", environment.observation_space(params))

    def reset(self, key: PRNGKey) -> tuple[Any, Float[Array, "*observation"]]:
        with _ordinary_promotion():
            observation, state = self.environment.reset_env(key, self.params)
        return jax.tree.map(_strong, state), _real(observation)

    @typed
    def step(self, state: Any, action: Any, key: PRNGKey) -> Transition:
        valid = self.actions.check(action)
        with _ordinary_promotion():
            observation, after, reward, done, _ = self.environment.step_env(key, state, action, self.params)
        # A scan needs a state of the same types as before; an environment may mix integers and reals.
        after = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), after, state)
        reward = _real(reward).reshape(())
        reward = jnp.where(valid, reward, jnp.full_like(reward, jnp.nan))
        return Transition(after, _real(observation), reward, jnp.asarray(done, bool).reshape(()))


class GymnaxEnvironments(eqx.Module):
    """A task distribution made of one gymnax environment: `sampler(key)` draws its parameters.

    **Arguments:**

    - `environment`: a gymnax environment, as `gymnax.make(name)[0]` gives it.
    - `vary`: `vary(params, key) -> params`, pure: what differs between tasks, such as
      `lambda params, key: params.replace(length=jax.random.uniform(key, minval=0.2, maxval=1.0))`.
    - `horizon`: the most steps of an episode, at least 1.
    - `params`: what `vary` starts from; the environment's `default_params` by default.

    **Returns** (of a call): a `GymnaxEnvironment`.

    **Raises:** as `GymnaxEnvironment`.

    >>> import metakit as mk
    >>> mk.tasks.GymnaxEnvironments(object(), lambda params, key: params, horizon=10)
    Traceback (most recent call last):
    ...
    TypeError: environment must be a gymnax environment with reset_env, step_env, ...
    """

    params: Any
    environment: Any = eqx.field(static=True)
    vary: Callable[[Any, PRNGKey], Any] = eqx.field(static=True)
    horizon: int = eqx.field(static=True)

    def __init__(self, environment: Any, vary: Callable[[Any, PRNGKey], Any], *, horizon: int, params: Any = None):
        _check_interface(environment)
        check_horizon(horizon)
        self.environment, self.vary, self.horizon = environment, vary, horizon
        self.params = jax.tree.map(_strong, environment.default_params if params is None else params)

    @typed
    def __call__(self, key: PRNGKey) -> GymnaxEnvironment:
        with _ordinary_promotion():
            params = self.vary(self.params, key)
        return GymnaxEnvironment(self.environment, params, horizon=self.horizon)


_INTERFACE = ("reset_env", "step_env", "action_space", "observation_space", "default_params")


def _check_interface(environment: Any) -> None:
    missing = [name for name in _INTERFACE if not hasattr(environment, name)]
    if missing:
        raise TypeError(
            f"environment must be a gymnax environment with {', '.join(_INTERFACE)}; {type(environment).__name__} has "
            f"no {', '.join(missing)}. gymnax.make(name) returns a pair: give its first part."
        )


def _actions(space: Any) -> Actions:
    return Discrete(int(space.n)) if hasattr(space, "n") else Continuous(*_shape("action", space))


def _shape(name: str, space: Any) -> tuple[int, ...]:
    shape = getattr(space, "shape", None)
    if shape is None or (name == "action" and len(shape) != 1):
        raise ValueError(
            f"the environment's {name} space is {space!r}; only discrete actions, real vectors as actions, and arrays "
            "as observations are supported. Write an mk.AbstractEnvironment around anything else."
        )
    return tuple(shape)


def _strong(leaf: Any) -> Any:
    """Parameters and states hold Python numbers; as leaves they would compile again for each value."""
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    weak = not hasattr(leaf, "dtype") or getattr(leaf, "weak_type", False)
    kind = jnp.int32 if jnp.issubdtype(array.dtype, jnp.integer) else jnp.result_type(float)
    return array.astype(kind if weak and array.dtype != jnp.bool_ else array.dtype)


def _real(value: Any) -> Array:
    return jnp.asarray(value).astype(jnp.result_type(float))


@contextlib.contextmanager
def _ordinary_promotion() -> Iterator[None]:
    """JAX's ordinary rules, for code that is not ours."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
