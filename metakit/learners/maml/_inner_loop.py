"""MAML's inner problem: its objective on the support set, and the query loss along the way."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from metakit import nn
from metakit._episode import Episode, Examples
from metakit._hyperparameter import held, trainable
from metakit._types import Scalar
from metakit.inner import Solution
from metakit.inner.select import intersection, partition
from metakit.learners._network import check_targets, check_way, not_statistics

from ._learner import MAML


class InnerArgs(eqx.Module):
    """Everything the inner objective depends on beside the adapted parameters; adjoints differentiate all of it."""

    learner: MAML  # with its model taken out, which is in `frozen` and the adapted parameters
    frozen: Any
    support: Examples
    query: Examples | None
    centre: Any  # what the proximal term pulls to, None without one


def problem(learner: MAML, support: Examples, query: Examples | None = None) -> tuple[Any, InnerArgs]:
    """The parameters that adapt, and what else the inner loss depends on."""
    params, frozen = partition(learner.model, intersection(learner.select, not_statistics))
    centre = None if learner.proximal is None else params
    return params, InnerArgs(eqx.tree_at(lambda l: l.model, learner, None), frozen, support, query, centre)


def solve(
    learner: MAML, support: Examples, query: Examples | None = None, *, observe: Callable[..., Any] | None = None
) -> tuple[Solution, InnerArgs]:
    """Run the inner loop on a support set; also returns what else it depended on."""
    params, args = problem(learner, support, query)
    start, inner = params, learner.inner
    # An adjoint raises when what it drops is differentiated, as all of a learner is. That is silenced only where
    # nothing is lost: the initialisation acts through the proximal term too, and fixed numbers do not move.
    dropped = learner.adjoint.dropped(learner.num_steps)
    if "params" in dropped and learner.proximal is not None:
        start = held(start)
    if "args" in dropped and learner.proximal is not None and learner.proximal.learned:
        raise ValueError(
            f"proximal is learned, but {type(learner.adjoint).__name__} gives no gradient of what the inner loss "
            "depends on, so it would never move. Fix it (proximal=2.0), or use another adjoint: mk.inner.Unrolled()."
        )
    if "solver" in dropped and not any(jax.tree.leaves(trainable(inner))):
        inner = held(inner)
    return learner.adjoint.solve(objective, inner, start, args, learner.num_steps, observe=observe), args


def objective(params: Any, args: InnerArgs, step: Array) -> Scalar:
    """The inner loss, with the pull towards the initialisation if there is one."""
    loss = support_loss(args.learner, eqx.combine(params, args.frozen), args.support, step)
    proximal = args.learner.proximal
    if proximal is None:
        return loss
    squares = jax.tree.map(lambda p, c: jnp.sum((p - c) ** 2).astype(loss.dtype), params, args.centre)
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
    shot = support.x.shape[0] / support.way
    return learner.loss(outputs, support.y, reduction="sum") / shot


def query_loss(learner: MAML, model: Any, task: Episode, step: Array) -> Scalar:
    """The mean loss on the query set of a model adapted for `step + 1` steps."""
    check_targets(learner.loss, task.query, "query")
    outputs = evaluation_model(learner, model, task.support.x, step)(task.query.x)
    check_way(outputs, task.query.way)
    return learner.loss(outputs, task.query.y, reduction="mean")


def evaluation_model(learner: MAML, model: Any, support_x: Array, step: Array) -> Any:
    """The model as it predicts: norm layers of the given step, under the learner's policy."""
    model = nn.at_step(model, step)
    return model if learner.norm_policy == "transductive" else nn.freeze_statistics(model, support_x)
