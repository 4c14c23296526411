"""Reptile's inner loop on one support set, and the surrogate that carries its update."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metakit import nn
from metakit._episode import Examples
from metakit._types import Inputs, PRNGKey, Scalar
from metakit.inner import AbstractSolver, FirstOrder, Solution, descend
from metakit.learners._minibatches import batch, batches_of
from metakit.learners._network import check_targets, check_way

from ._learner import Adapted, Reptile, moving


class _Data(eqx.Module):
    loss: Callable[..., Array]
    support: Examples
    rows: Int[Array, "num_steps batch"] | None


class _Started(AbstractSolver):
    """A solver that goes on from a given state."""

    solver: AbstractSolver
    state: Any

    def init(self, params: Any) -> Any:
        del params
        return self.state

    def update(self, grads: Any, state: Any, params: Any, step: Int[Array, ""]) -> tuple[Any, Any]:
        return self.solver.update(grads, state, params, step)

    def max_steps(self) -> int | None:
        return self.solver.max_steps()


def solve(learner: Reptile, support: Examples, key: PRNGKey | None) -> tuple[Any, Solution]:
    """Run the inner loop; returns the model after it, and its solution."""
    check_targets(learner.loss, support, "support")
    rows = batches_of(support, learner.batch_size, learner.num_steps, key, "Reptile")
    solver = learner.inner if learner.state is None else _Started(learner.inner, learner.state)
    return descend(
        _inner_loss,
        learner.model,
        _Data(learner.loss, support, rows),
        solver=solver,
        num_steps=learner.num_steps,
        select=moving(learner),
        adjoint=FirstOrder(),  # nothing is differentiated through the loop, so this only chooses its form: a scan
    )


def _inner_loss(model: Any, data: _Data, step: Int[Array, ""]) -> Scalar:
    examples = batch(data.support, data.rows, step)
    outputs = model(examples.x)
    check_way(outputs, examples.way)
    return data.loss(outputs, examples.y, reduction="mean")


def adapted_model(learner: Reptile, model: Any, support: Examples) -> Adapted:
    """The model as it predicts under the learner's policy."""
    if learner.norm_policy == "inductive":
        model = nn.freeze_statistics(model, support.x)
    return Adapted(model, support.x if learner.norm_policy == "one_by_one" else None, support.way)


def one_by_one(model: Any, support: Inputs, x: Inputs) -> Float[Array, "query *out"]:
    """Each query's output in a batch of the support set and that query alone."""

    def alike(known: Array, new: Array) -> None:
        if new.shape[1:] != known.shape[1:] or new.dtype != known.dtype:
            raise ValueError(
                f"x must hold examples like the support's, {known.dtype}{list(known.shape[1:])}, got "
                f"{new.dtype}{list(new.shape[1:])} in x{list(new.shape)}. One query still needs the leading axis: "
                "x[None]."
            )

    def alone(one: Any) -> Array:
        return model(jax.tree.map(lambda known, new: jnp.concatenate([known, new[None]]), support, one))[-1]

    jax.tree.map(alike, support, x)
    return jax.vmap(alone)(x)


def zero_with_gradient(start: Any, end: Any) -> Scalar:
    """Zero, whose gradient with respect to the floating-point arrays of `start` is `start - end`."""

    def one(theta: Array, phi: Array) -> Scalar:
        direction = jax.lax.stop_gradient(theta - phi)
        return jnp.sum(direction * (theta - jax.lax.stop_gradient(theta)))

    terms = jax.tree.leaves(jax.tree.map(one, start, end))
    dtype = jnp.result_type(*terms)
    return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))
