"""The smallest world that must be explored: four neighbours, one of them the goal."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from metakit._environment import AbstractEnvironment, Discrete, Transition, check_horizon, nan_unless
from metakit._typecheck import typed
from metakit._types import PRNGKey

# Where each action leads on the 3x3 map, (row, column): left, down, right, up.
_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))


class GridWorld(AbstractEnvironment):
    r"""A 3x3 map: start in the centre, one of its four neighbours is the goal and the other three are holes.

    The goal pays 1 and a hole 0; either ends the episode. The observation is the cell, one-hot over the nine. So the
    first move decides, and whoever does not know the goal cannot expect more than 1/4 from the first episode.

    **Arguments:**

    - `goal`: which action leads to it, an integer: 0 left, 1 down, 2 right, 3 up.
    - `horizon`: the most steps of an episode, at least 1, static; 10 by default, as published, of which one is used.

    **Raises:** `ValueError` for a goal that is none of the four or a horizon below 1; of `step`, for an action that is
    none. In compiled code, where nothing can raise, that action's reward is NaN.

    >>> import jax, metakit as mk
    >>> task = mk.tasks.GridWorld(2)
    >>> state, _ = task.reset(jax.random.key(0))
    >>> [float(task.step(state, action, jax.random.key(1)).reward) for action in range(4)]
    [0.0, 0.0, 1.0, 0.0]

    **Source:** the released code of Finn et al. 2017 (cbfinn/maml_rl, `grid_world_env_rand.py`).
    """

    goal: Int[Array, ""]
    horizon: int = eqx.field(static=True)

    def __init__(self, goal: Any, horizon: int = 10):
        check_horizon(horizon)
        self.goal = jnp.asarray(goal, jnp.int32)
        self.horizon = horizon
        if self.goal.shape != () or not (isinstance(self.goal, Tracer) or 0 <= np.asarray(self.goal) < 4):
            raise ValueError(f"goal must be one of 0 (left), 1 (down), 2 (right) and 3 (up), got {goal!r}.")

    @property
    def actions(self) -> Discrete:
        """Left, down, right, up."""
        return Discrete(4)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """One number for each cell, row by row."""
        return (9,)

    def reset(self, key: PRNGKey) -> tuple[Int[Array, "2"], Float[Array, "9"]]:
        del key
        centre = jnp.ones((2,), jnp.int32)
        return centre, _observe(centre)

    @typed
    def step(self, state: Int[Array, "2"], action: Any, key: PRNGKey) -> Transition:
        del key
        valid = self.actions.check(action)
        moves = jnp.asarray(_MOVES, jnp.int32)
        after = jnp.clip(state + moves[jnp.clip(jnp.asarray(action), 0, 3)], 0, 2)
        observation = _observe(after)
        goal = jnp.all(after == 1 + moves[self.goal])
        return Transition(after, observation, nan_unless(valid, goal.astype(observation.dtype)), jnp.any(after != 1))


class GridWorlds(eqx.Module):
    """The distribution of the four grid worlds, each as likely; `sampler(key)` draws one.

    **Arguments:** `horizon`, as in `GridWorld`.

    **Returns** (of a call): a `GridWorld`.

    **Raises:** `ValueError` for a horizon below 1.

    >>> import jax, metakit as mk
    >>> int(mk.tasks.GridWorlds()(jax.random.key(0)).goal) in range(4)
    True
    """

    horizon: int = eqx.field(static=True)

    def __init__(self, *, horizon: int = 10):
        check_horizon(horizon)
        self.horizon = horizon

    @typed
    def __call__(self, key: PRNGKey) -> GridWorld:
        return GridWorld(jax.random.randint(key, (), 0, 4, jnp.int32), self.horizon)


def _observe(cell: Int[Array, "2"]) -> Float[Array, "9"]:
    return jax.nn.one_hot(3 * cell[0] + cell[1], 9, dtype=jnp.result_type(float))
