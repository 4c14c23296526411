"""The loop as one function of everything it depends on: what a custom derivative rule needs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from ._adjoint import Carry, Objective, Observe, Solution, check_steps, make_step, split_params, step_indices
from ._closures import refuse_traced_closures
from ._solver import AbstractSolver


class Inputs(eqx.Module):
    """All that the end of a loop depends on. A custom rule may close over none of it."""

    params: Any  # the arrays that adapt
    rest: Any  # the other leaves of the parameters
    args: Any
    solver: Any


class Loop(eqx.Module):
    """What is fixed while a program is traced."""

    objective: Objective
    observe: Observe | None
    num_steps: int = eqx.field(static=True)


def prepare(
    objective: Objective, solver: AbstractSolver, params: Any, args: Any, num_steps: int, observe: Observe | None
) -> tuple[Inputs, Loop]:
    """Checked arguments of `solve`, sorted into what varies and what does not."""
    check_steps(solver, num_steps)
    refuse_traced_closures(objective, params, args)
    if observe is not None:
        refuse_traced_closures(observe, params, args, "observe")
    adapted, rest = split_params(params)
    return Inputs(adapted, rest, args, solver), Loop(objective, observe, num_steps)


def value_of(inputs: Inputs, loop: Loop) -> Callable[[Any, Any, Array], Array]:
    """The objective as a function of the arrays that adapt."""

    def value(params: Any, args: Any, index: Array) -> Array:
        return loop.objective(eqx.combine(params, inputs.rest), args, index)

    return value


def start(inputs: Inputs) -> Carry:
    """The carry before the first step."""
    return inputs.params, inputs.solver.init(inputs.params)


def run(inputs: Inputs, loop: Loop) -> Solution:
    """The plain loop; `params` of the solution are the arrays that adapt."""
    step = make_step(jax.value_and_grad(value_of(inputs, loop)), inputs.solver, inputs.rest, inputs.args, loop.observe)
    (params, state), (losses, observed) = jax.lax.scan(step, start(inputs), step_indices(loop.num_steps))
    return Solution(params, losses, state, observed)


def inexact(tree: Any) -> Any:
    """The floating-point arrays of a tree, `None` elsewhere."""
    return eqx.filter(tree, eqx.is_inexact_array)


@eqx.filter_custom_vjp
def refuse_gradient(tree: Any, message: str) -> Any:
    """The identity, which raises `ValueError` when it is differentiated."""
    del message
    return tree


@refuse_gradient.def_fwd
def _refuse_forward(perturbed: Any, tree: Any, message: str) -> Any:
    if any(jax.tree.leaves(perturbed)):
        raise ValueError(message)
    return tree, None


@refuse_gradient.def_bwd
def _refuse_backward(residuals: Any, cotangents: Any, perturbed: Any, tree: Any, message: str) -> Any:
    del residuals, perturbed, tree, message
    return cotangents
