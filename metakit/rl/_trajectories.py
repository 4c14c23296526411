"""What acting in an environment leaves behind."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped

from metakit._environment import Actions
from metakit._typecheck import typed
from metakit._types import Flag

from ._distributions import AbstractDistribution


class Trajectories(eqx.Module):
    """Episodes of one task, and the distributions their actions were drawn from.

    It is the support set of reinforcement learning: what `adapt` learns from.

    **Arguments:**

    - `observations`: `[episodes, horizon, *observation]`, what the policy saw before it acted.
    - `actions`: `[episodes, horizon]` integers, or `[episodes, horizon, size]` real numbers.
    - `rewards`: `[episodes, horizon]`.
    - `mask`: `[episodes, horizon]` Booleans: whether the step took place. An episode that ended early is filled up
      with steps that did not; no loss depends on what they hold, but a memory reads them (`mk.rl.tokens`).
    - `behaviour`: the distributions that the actions were drawn from, every array `[episodes, horizon, ...]`.

    **Raises:** `ValueError` when an array does not lead with the same `[episodes, horizon]`, when there is no episode
    or no step, or when `mask` is not Boolean.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> mk.rl.rollout(policy, bandit, jax.random.key(2), num_episodes=5).rewards.shape
    (5, 1)
    """

    observations: Float[Array, "episodes horizon *observation"]
    actions: Shaped[Array, "episodes horizon *action"]
    rewards: Float[Array, "episodes horizon"]
    mask: Bool[Array, "episodes horizon"]
    behaviour: AbstractDistribution

    def __check_init__(self):
        lead = self.rewards.shape
        if len(lead) != 2 or 0 in lead:
            raise ValueError(
                f"rewards must be [episodes, horizon] with at least one of each, got shape {list(lead)}. One episode "
                "still needs its axis: rewards[None]."
            )
        fields: list[tuple[str, Any]] = [(name, getattr(self, name)) for name in ("observations", "actions", "mask")]
        fields += [(f"behaviour{jax.tree_util.keystr(p)}", x) for p, x in jax.tree.leaves_with_path(self.behaviour)]
        for name, value in fields:
            if value.shape[:2] != lead:
                raise ValueError(
                    f"{name} must lead with the [episodes, horizon] of rewards, {list(lead)}, got shape "
                    f"{list(value.shape)}."
                )
        if self.mask.shape != lead or self.mask.dtype != jnp.bool_:
            raise ValueError(f"mask must be Booleans {list(lead)}, got {self.mask.dtype}{list(self.mask.shape)}.")

    @property
    def log_probs(self) -> Float[Array, "episodes horizon"]:
        """Of the actions, under the policy that took them."""
        return self.behaviour.log_prob(self.actions)

    @property
    def returns(self) -> Float[Array, " episodes"]:
        """The sum of rewards of each episode, not discounted."""
        return jnp.sum(jnp.where(self.mask, self.rewards, jnp.zeros_like(self.rewards)), axis=1)


@typed
def masked_mean(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The mean over the steps that took place.

    **Arguments:** `values`; `mask`, Booleans of the same shape, at least one of them true.

    **Returns:** a scalar. What a step that did not take place holds does not matter, not even NaN.

    >>> import jax.numpy as jnp
    >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    count = jnp.sum(mask).astype(values.dtype)
    return jnp.sum(jnp.where(mask, values, jnp.zeros_like(values))) / count


def as_data(tree: Any) -> Any:
    """The same tree with no gradient through it: how actions were sampled is nothing to differentiate.

    **Arguments:** `tree`, any PyTree.

    **Returns:** the same values.

    >>> import jax, jax.numpy as jnp
    >>> float(jax.grad(lambda x: x * as_data(x))(jnp.array(3.0)))
    3.0
    """
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


@typed
def check_actions(
    taken: Shaped[Array, "episodes horizon *action"],
    actions: Actions,
    mask: Bool[Array, "episodes horizon"] | None = None,
    name: str = "the trajectories",
) -> Flag:
    """Whether all actions of some trajectories are among those that can be taken.

    **Arguments:**

    - `taken`: the `actions` of `Trajectories`, `[episodes, horizon]` integers or `[episodes, horizon, size]` real
      numbers, of which one that is not finite is none.
    - `actions`: what they should be of, such as the environment's or a distribution's `actions`.
    - `mask`: `[episodes, horizon]` Booleans, which of them matter; default all.
    - `name`: of the trajectories in an error.

    **Returns:** a Boolean scalar for use in compiled code, where nothing can raise.

    **Raises:** `ValueError` for actions of another dtype or shape, and, outside compiled code, for one out of range,
    with its episode and step.

    >>> import jax.numpy as jnp, metakit as mk
    >>> bool(mk.rl.check_actions(jnp.array([[0, 1, 1]]), mk.Discrete(2)))
    True
    """
    try:
        valid = jax.vmap(jax.vmap(actions.check))(taken)
    except ValueError as error:  # in the words of `step`, which the caller has not called
        raise ValueError(
            f"the actions of {name}, of dtype {taken.dtype} and shape {list(taken.shape)}, are not of {actions}. "
            "Collect them in the policy's own environment."
        ) from error
    if mask is not None:
        valid = valid | ~mask
    if not isinstance(valid, Tracer) and not valid.all():
        episode, step = (int(index[0]) for index in jnp.nonzero(~valid))
        raise ValueError(
            f"an action of {name} is not of {actions}: {taken[episode, step]} in episode {episode}, step {step}. "
            "Collect them in the policy's own environment."
        )
    return jnp.all(valid)
