"""MAML's inner problem: its objective on the support set, and the query loss along the way."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from metakit import nn
from metakit._episode import Episode, Examples
from metakit._hyperparameter import held
from metakit._types import Scalar
from metakit.inner import Solution, descend
from metakit.inner.select import Filter, intersection, partition
from metakit.learners._network import check_targets, check_way, not_statistics

from ._learner import MAML


class InnerData(eqx.Module):
    """What the inner loss depends on beside the model."""

    learner: MAML  # with its model taken out, which descends
    support: Examples
    query: Examples | None
    centre: Any  # what the proximal term pulls to, None without one


def adapting(learner: MAML) -> Filter:
    """Which leaves of its model adapt."""
    return intersection(learner.select, not_statistics)


def inner_data(learner: MAML, support: Examples, query: Examples | None = None) -> InnerData:
    centre = None if learner.proximal is None else partition(learner.model, adapting(learner))[0]
    return InnerData(eqx.tree_at(lambda l: l.model, learner, None), support, query, centre)


def solve(
    learner: MAML, support: Examples, query: Examples | None = None, *, observe: Callable[..., Any] | None = None
) -> tuple[Any, Solution, InnerData]:
    """Run the inner loop on a support set; also returns what it depended on."""
    start, data, select = learner.model, inner_data(learner, support, query), adapting(learner)
    dropped = learner.adjoint.dropped(learner.num_steps)
    if "params" in dropped and learner.proximal is not None:
        # Implicit refuses to drop the start's gradient, and need not: the start acts through the proximal term too.
        moving, frozen = partition(start, select)
        start = eqx.combine(held(moving), frozen)
    if "args" in dropped and learner.proximal is not None and learner.proximal.learned:
        raise ValueError(
            f"proximal is learned, but {type(learner.adjoint).__name__} gives no gradient of what the inner loss "
            "depends on, so it would never move. Fix it (proximal=2.0), or use another adjoint: mk.inner.Unrolled()."
        )
    model, solution = descend(
        inner_loss,
        start,
        data,
        solver=learner.inner,
        num_steps=learner.num_steps,
        select=select,
        adjoint=learner.adjoint,
        observe=observe,
    )
    return model, solution, data


def inner_loss(model: Any, data: InnerData, step: Array) -> Scalar:
    """The support loss, with the pull towards the initialisation if there is one."""
    loss = support_loss(data.learner, model, data.support, step)
    proximal = data.learner.proximal
    if proximal is None:
        return loss
    params, _ = partition(model, adapting(data.learner))
    squares = jax.tree.map(lambda p, c: jnp.sum((p - c) ** 2).astype(loss.dtype), params, data.centre)
    return loss + proximal.value.astype(loss.dtype) / 2 * sum(jax.tree.leaves(squares))


def support_loss(learner: MAML, model: Any, support: Examples, step: Array) -> Scalar:
    """The inner loss of a model at a step, reduced as the learner says."""
    check_targets(learner.loss, support, "support")
    outputs = nn.at_step(model, step)(support.x)
    check_way(outputs, support.way)
    if learner.reduction == "mean":
        return learner.loss(outputs, support.y, reduction="mean")
    if support.way is None:
        raise ValueError(
            'reduction="sum/shot" divides by the shot n / way, but support.way is None. Give the examples their way, '
            'or use reduction="mean".'
        )
    shot = support.y.shape[0] / support.way
    return learner.loss(outputs, support.y, reduction="sum") / shot


def query_loss(learner: MAML, model: Any, task: Episode, step: Array) -> Scalar:
    """The mean loss on the query set of a model adapted for `step + 1` steps."""
    loss = learner.loss if learner.query_loss is None else learner.query_loss
    check_targets(loss, task.query, "query")
    outputs = evaluation_model(learner, model, task.support.x, step)(task.query.x)
    check_way(outputs, task.query.way)
    return loss(outputs, task.query.y, reduction="mean")


def evaluation_model(learner: MAML, model: Any, support_x: Array, step: Array) -> Any:
    """The model as it predicts: norm layers of the given step, under the learner's policy."""
    model = nn.at_step(model, step)
    return model if learner.norm_policy == "transductive" else nn.freeze_statistics(model, support_x)
