"""How good an action was: returns and advantages of one sequence of steps, and how they are scaled."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metakit._typecheck import typed
from metakit._types import Scalar

from ._trajectories import masked_mean


@typed
def gae(
    rewards: Float[Array, " steps"],
    values: Float[Array, " steps"],
    mask: Bool[Array, " steps"],
    discount: Scalar,
    trace_decay: Scalar,
) -> Float[Array, " steps"]:
    r"""Generalised advantage estimates of one sequence of steps, after which nothing follows.

    $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad V_T = A_T = 0$$

    With $\lambda = 1$ it is the discounted return minus the value, with $\lambda = 0$ the temporal difference. Steps
    that did not take place are stepped over: they give 0, and to the step before them they are not there. So one call
    serves an episode that ended early, and a trial of several such episodes.

    **Arguments:**

    - `rewards`, `values`: $r_t$ and $V_t$, `[steps]`.
    - `mask`: `[steps]`, whether the step took place.
    - `discount`: $\gamma$, in `[0, 1]`.
    - `trace_decay`: $\lambda$, in `[0, 1]`.

    **Returns:** $A_t$, `[steps]`.

    **Source:** Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    equations 11 and 16, https://arxiv.org/abs/1506.02438

    >>> import jax.numpy as jnp
    >>> one, all_three = jnp.ones(()), jnp.ones(3, bool)
    >>> gae(jnp.array([1.0, 2.0, 4.0]), jnp.zeros(3), all_three, 0.5 * one, one).tolist()
    [3.0, 4.0, 4.0]
    """
    decay = discount * trace_decay

    def step(later: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        reward, value, present = now
        later_advantage, later_value = later
        advantage = reward + discount * later_value - value + decay * later_advantage
        carry = jnp.where(present, advantage, later_advantage), jnp.where(present, value, later_value)
        return carry, jnp.where(present, advantage, jnp.zeros_like(advantage))

    zero = jnp.zeros((), rewards.dtype)
    return jax.lax.scan(step, (zero, zero), (rewards, values, mask), reverse=True)[1]


@typed
def discounted_returns(
    rewards: Float[Array, " steps"], mask: Bool[Array, " steps"], discount: Scalar
) -> Float[Array, " steps"]:
    r"""The discounted sum of the rewards from each step on.

    $$G_t = r_t + \gamma G_{t+1}, \qquad G_T = 0$$

    **Arguments:** `rewards`, `[steps]`; `mask`, `[steps]`, whether the step took place, as in `gae`; `discount`,
    $\gamma$.

    **Returns:** `[steps]`.

    >>> import jax.numpy as jnp
    >>> discounted_returns(jnp.array([1.0, 2.0, 4.0]), jnp.ones(3, bool), jnp.array(0.5)).tolist()
    [3.0, 4.0, 4.0]
    """
    return gae(rewards, jnp.zeros_like(rewards), mask, discount, jnp.ones_like(discount))


@typed
def standardise(
    values: Float[Array, "*steps"], mask: Bool[Array, "*steps"], epsilon: float = 1e-8
) -> Float[Array, "*steps"]:
    r"""Shift and scale to mean 0 and standard deviation 1 over the steps that took place.

    $$\hat A = \frac{A - \operatorname{mean} A}{\operatorname{std} A + \epsilon}$$

    **Arguments:** `values` and `mask`, of one shape; `epsilon`, $\epsilon$, default 1e-8: values that are all equal
    become 0.

    **Returns:** the values, 0 where the step did not take place.

    >>> import jax.numpy as jnp
    >>> standardise(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])).round(3).tolist()
    [-1.0, 1.0, 0.0]
    """
    centred = jnp.where(mask, values - masked_mean(values, mask), jnp.zeros_like(values))
    variance = masked_mean(centred * centred, mask)
    # The derivative of a root at 0 is infinite, and 0 times that is NaN.
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, jnp.ones_like(variance))), variance)
    return centred / (std + epsilon)
