"""The inner problem: advantages of one task's episodes, and policy-gradient steps on them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._types import Flag, Scalar
from metakit.inner import descend
from metakit.rl import (
    Trajectories,
    check_actions,
    distributions,
    gae,
    linear_baseline,
    policy_surrogate,
    standardise,
)

from ._learner import RLMAML


class InnerData(eqx.Module):
    """What the inner loss depends on beside the policy."""

    learner: RLMAML  # with its policy taken out, which descends
    batches: Trajectories  # a leading axis of inner steps
    advantages: Float[Array, "num_steps episodes horizon"]


def advantages(learner: RLMAML, trajectories: Trajectories, name: str) -> Float[Array, "episodes horizon"]:
    """Of one task's episodes, with the learner's baseline, and standardised if it says so.

    All NaN where a step that took place holds an action that the policy cannot take: the log-probability of that is NaN
    as it is, but the gradient of it, which is all that an inner step sees, is not."""
    rewards, mask = trajectories.rewards, trajectories.mask
    discount, decay, penalty = (
        number.value.astype(rewards.dtype)
        for number in (learner.discount, learner.trace_decay, learner.baseline_penalty)
    )
    linear = learner.baseline == "linear"
    values = linear_baseline(trajectories, discount, penalty) if linear else jnp.zeros_like(rewards)
    raw = jax.vmap(gae, in_axes=(0, 0, 0, None, None))(rewards, values, mask, discount, decay)
    scaled = standardise(raw, mask) if learner.standardise else raw
    return jnp.where(_fits(learner.policy, trajectories, name), scaled, jnp.full_like(scaled, jnp.nan))


def _fits(policy: Any, trajectories: Trajectories, name: str) -> Flag:
    """Whether the policy can take the actions of the steps that took place; raises where that is known."""
    space = eqx.filter_eval_shape(distributions, policy, trajectories.observations).actions
    if space is None:
        return jnp.ones((), bool)
    return check_actions(trajectories.actions, space, trajectories.mask, name)


def solve(learner: RLMAML, support: tuple[Trajectories, ...]) -> Any:
    """The policy after an inner step on each batch of episodes."""
    if not support:
        return learner.policy
    names = ["support"] if len(support) == 1 else [f"support[{index}]" for index in range(len(support))]
    scaled = [advantages(learner, batch, name) for batch, name in zip(support, names, strict=True)]
    _require_alike(support)
    batches, scaled = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(support, scaled, strict=True))
    policy, _ = descend(
        _inner_loss,
        learner.policy,
        InnerData(eqx.tree_at(lambda l: l.policy, learner, None), batches, scaled),
        solver=learner.inner,
        num_steps=len(support),
        select=learner.select,
        adjoint=learner.adjoint,
    )
    return policy


def _require_alike(support: tuple[Trajectories, ...]) -> None:
    """Batches are the steps of one loop."""
    first = support[0]
    for index, batch in enumerate(support[1:], 1):
        if jax.tree.structure(batch) != jax.tree.structure(first):
            raise ValueError(
                "all batches of support must come from one kind of policy, got behaviour "
                f"{type(first.behaviour).__name__} in support[0] and {type(batch.behaviour).__name__} in "
                f"support[{index}]."
            )
        for (path, expected), leaf in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(batch), strict=True):
            if (leaf.shape, leaf.dtype) != (expected.shape, expected.dtype):
                name = jax.tree_util.keystr(path)
                raise ValueError(
                    "all batches of support must have the same shapes and dtypes, got "
                    f"{expected.dtype}{list(expected.shape)} in support[0]{name} and {leaf.dtype}{list(leaf.shape)} in "
                    f"support[{index}]{name}. Collect each with the same num_episodes and horizon."
                )


def _inner_loss(policy: Any, data: InnerData, step: Array) -> Scalar:
    batch, scaled = jax.tree.map(lambda leaf: leaf[step], (data.batches, data.advantages))
    log_probs = distributions(policy, batch.observations).log_prob(batch.actions)
    return policy_surrogate(data.learner.surrogate, log_probs, batch.log_probs, scaled, batch.mask)
