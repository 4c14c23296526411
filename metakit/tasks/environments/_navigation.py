"""A point that must find a hidden goal in the plane."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metakit._environment import AbstractEnvironment, Continuous, Transition, check_horizon, nan_unless
from metakit._typecheck import typed
from metakit._types import PRNGKey
from metakit.tasks._numbers import as_numbers, as_range, uniform

_STEP = 0.1
_NEAR = 0.01


class Navigation(AbstractEnvironment):
    r"""Walk in the plane towards a goal that is not seen.

    $$s' = s + 0.1\, \operatorname{clip}(a, -1, 1), \qquad r = -\lVert s' - g \rVert_2$$

    from $s = (0, 0)$, until both coordinates are within 0.01 of the goal's, or for `horizon` steps. The observation is
    the position.

    **Arguments:** `goal`, $g$, `[2]`; `horizon`, at least 1, static; 100 by default.

    **Raises:** `ValueError` for a goal that is not two finite numbers or a horizon below 1; of `step`, for an action
    that is not `[2]` real numbers. One that is not finite gives a reward of NaN.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> task = mk.tasks.Navigation([0.3, 0.4])
    >>> state, _ = task.reset(jax.random.key(0))
    >>> round(float(task.step(state, jnp.zeros(2), jax.random.key(1)).reward), 6)
    -0.5

    **Source:** Finn et al. 2017, "Model-Agnostic Meta-Learning", section 5.3, https://arxiv.org/abs/1703.03400. The
    text says the squared distance; the released code, which made the published figures, takes the distance.
    """

    goal: Float[Array, "2"]
    horizon: int = eqx.field(static=True)

    def __init__(self, goal: Any, horizon: int = 100):
        check_horizon(horizon)
        self.goal = as_numbers(goal, "goal", (2,), np.size, "two finite numbers")
        self.horizon = horizon

    @property
    def actions(self) -> Continuous:
        """A direction in the plane, in units of the longest step."""
        return Continuous(2)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """A position."""
        return (2,)

    def reset(self, key: PRNGKey) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        del key
        start = jnp.zeros_like(self.goal)
        return start, start

    @typed
    def step(self, state: Float[Array, "2"], action: Any, key: PRNGKey) -> Transition:
        del key
        valid = self.actions.check(action)
        after = state + _STEP * jnp.clip(action, -1, 1)
        gap = after - self.goal
        reward = nan_unless(valid, -jnp.sqrt(jnp.sum(gap * gap)))
        return Transition(after, after, reward, jnp.all(jnp.abs(gap) < _NEAR))


class Navigations(eqx.Module):
    r"""The distribution of navigation tasks with a goal uniform in a square; `sampler(key)` draws one.

    $$g \sim U[-0.5, 0.5]^2$$

    **Arguments:**

    - `goal`: range of each coordinate of the goal; `(-0.5, 0.5)` by default.
    - `horizon`: of an episode, at least 1; 100 by default.

    **Returns** (of a call): a `Navigation`.

    **Raises:** `ValueError` for an empty range or a horizon below 1.

    >>> import jax, metakit as mk
    >>> mk.tasks.Navigations()(jax.random.key(0)).goal.shape
    (2,)

    **Source:** Finn et al. 2017, section 5.3, https://arxiv.org/abs/1703.03400
    """

    goal: Float[Array, "2"]
    horizon: int = eqx.field(static=True)

    def __init__(self, *, goal: Any = (-0.5, 0.5), horizon: int = 100):
        check_horizon(horizon)
        self.goal = as_range(goal, "goal")
        self.horizon = horizon

    @typed
    def __call__(self, key: PRNGKey) -> Navigation:
        return Navigation(uniform(key, self.goal, (2,)), self.horizon)


@typed
def navigation_greedy(task: Navigation, position: Float[Array, "2"]) -> Float[Array, "2"]:
    """The action of one who sees the goal: straight at it, as far as a step goes.

    Each coordinate is clipped on its own, so a step may be longer along the diagonal, which the greedy one uses.

    **Arguments:** `task`; `position`, `[2]`.

    **Returns:** an action `[2]`. Acting so gives a mean return of -0.504 over `Navigations()`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.tasks.navigation_greedy(mk.tasks.Navigation([0.5, 0.05]), jnp.zeros(2)).tolist()
    [1.0, 0.5]
    """
    return jnp.clip((task.goal - position) / _STEP, -1, 1)
