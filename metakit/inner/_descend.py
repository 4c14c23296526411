"""The inner loop of a model in one call."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array

from metakit._hyperparameter import held, trainable
from metakit._types import PRNGKey
from metakit._wording import describe, uncalled

from . import select as selection
from ._adjoint import AbstractAdjoint, Objective, Solution
from ._auto import Auto
from ._solver import AbstractSolver, Step


class Arguments(eqx.Module):
    """Everything that the loss depends on beside the parameters that adapt; adjoints differentiate all of it."""

    loss: Callable[..., Array]
    frozen: Any
    data: Any
    key: PRNGKey | None


class Problem(NamedTuple):
    """The loop of `descend` in the terms of `AbstractAdjoint.solve` and `mk.inner.choose_adjoint`.

    - `objective`: `objective(params, args, step) -> scalar`.
    - `params`: the part of the model that adapts.
    - `args`: all else that the loss depends on.

    >>> import jax.numpy as jnp, metakit as mk
    >>> objective, params, args = mk.inner.problem(lambda w, x, step: (w - x) ** 2, jnp.ones(()), jnp.zeros(()))
    >>> float(objective(params, args, jnp.asarray(0)))
    1.0
    """

    objective: Objective
    params: Any
    args: Arguments


def problem(
    loss: Callable[..., Array],
    model: Any,
    data: Any,
    *,
    select: selection.Filter = selection.everything,
    key: PRNGKey | None = None,
) -> Problem:
    """What `descend` gives to the adjoint, to ask `mk.inner.choose_adjoint` about.

    **Arguments:** as `descend`.

    **Returns:** a `Problem`.

    **Raises:** `TypeError` and `ValueError` as `descend`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> objective, params, args = mk.inner.problem(lambda w, x, step: jnp.sum((w - x) ** 2), jnp.ones(3), jnp.zeros(3))
    >>> mk.inner.choose_adjoint(objective, mk.inner.SGD(0.1), params, args, 20).reason[:32]
    '20 steps of SGD on 3 parameters:'
    """
    _check_loss(loss, key)
    adapting, frozen = selection.partition(model, select)
    return Problem(_objective, adapting, Arguments(loss, frozen, data, key))


def descend(
    loss: Callable[..., Array],
    model: Any,
    data: Any,
    *,
    solver: AbstractSolver,
    num_steps: int,
    select: selection.Filter = selection.everything,
    adjoint: AbstractAdjoint | Literal["auto"] = "auto",
    key: PRNGKey | None = None,
    observe: Callable[..., Any] | None = None,
) -> tuple[Any, Solution]:
    r"""Take a model down a loss: the inner loop of a learner in one call.

    $$m_{t+1} = u_\eta\bigl(\nabla_{\text{select}} L(m_t, d, t),\, m_t\bigr), \qquad t = 0, \dots, K - 1$$

    Only what `select` picks moves. All else that `loss` depends on, the frozen parts, the data, a loss's own weights,
    is handed to the adjoint as well, so that gradients reach it.

    **Arguments:**

    - `loss`: `loss(model, data, step) -> scalar`, a function or a module with weights of its own; with a `key` it is
      called `loss(model, data, step, key)`. It may close over nothing that JAX is tracing: that goes into `data`.
    - `model`: the start, any PyTree.
    - `data`: whatever the loss needs beside the model, any PyTree, such as a support set, or a tuple of it and the
      start that the loss pulls to.
    - `solver`: the update rule, such as `mk.inner.SGD(0.1)`.
    - `num_steps`: $K$, static, at least 0.
    - `select`: which leaves adapt, a filter of `mk.inner.select`; default all floating-point arrays.
    - `adjoint`: how the loop is differentiated, one of `mk.inner`; default `"auto"`, an exact one by size.
    - `key`: each step's is folded from it and the step's index. `None`, the default, for a loss that draws nothing.
    - `observe`: `observe(model, data, step)`, with the key where there is one, called after each step with the model as
      it then is; its results come back stacked in `Solution.observed`.

    **Returns:** `(model, solution)`: the model after the last step, and the `Solution`, whose `params` are the part
    that adapted. Under an adjoint that drops the solver's gradient (`Implicit`), a solver whose numbers are all fixed
    is held; a start that is part of the learner is for you to hold, `mk.held(model)`.

    **Raises:** `TypeError` for a `solver` or an `adjoint` that is none, or a loss that cannot be called; `ValueError`
    when the loss takes other arguments (a key, and there is none), or has weights that the adjoint gives no gradient
    of, for a filter that selects nothing, and what the adjoint raises.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> def loss(model, support, step):
    ...     return mk.losses.squared_error(model(support.x), support.y, reduction="mean")
    >>> support = mk.tasks.Sinusoid()(jax.random.key(1)).support
    >>> adapted, solution = mk.inner.descend(
    ...     loss, model, support, solver=mk.inner.SGD(0.01), num_steps=3, select=mk.inner.select.head_only)
    >>> solution.losses.shape, bool((adapted.hidden[0].weight == model.hidden[0].weight).all())
    ((3,), True)
    """
    _check_instance("solver", solver, AbstractSolver, "mk.inner.SGD(0.1)")
    how = Auto() if isinstance(adjoint, str) and adjoint == "auto" else adjoint
    _check_instance("adjoint", how, AbstractAdjoint, 'mk.inner.Unrolled() or "auto"')
    objective, params, args = problem(loss, model, data, select=select, key=key)
    # An adjoint refuses to drop the gradient of what is differentiated, as every number of a learner is by
    # eqx.filter_grad. Nothing is lost where none of them moves.
    if "solver" in how.dropped(num_steps) and not any(jax.tree.leaves(trainable(solver))):
        solver = held(solver)
    if "args" in how.dropped(num_steps) and any(jax.tree.leaves(trainable(loss))):
        raise ValueError(
            f"loss has weights of its own, but {type(how).__name__} gives no gradient of what the inner loss depends "
            "on, so they would never move. Put them into mk.fixed, or use another adjoint: mk.inner.Unrolled()."
        )

    def watch(params: Any, args: Arguments, step: Step) -> Any:
        assert observe is not None
        return _call(observe, params, args, step)

    solution = how.solve(objective, solver, params, args, num_steps, observe=None if observe is None else watch)
    return eqx.combine(solution.params, args.frozen), solution


def _objective(params: Any, args: Arguments, step: Step) -> Array:
    return _call(args.loss, params, args, step)


def _call(function: Callable[..., Any], params: Any, args: Arguments, step: Step) -> Any:
    model = eqx.combine(params, args.frozen)
    if args.key is None:
        return function(model, args.data, step)
    return function(model, args.data, step, jax.random.fold_in(args.key, step))


def _check_instance(name: str, value: Any, kind: type, example: str) -> None:
    if not isinstance(value, kind):
        advice = f" {uncalled(value)}" if isinstance(value, type) else ""
        raise TypeError(
            f"{name} must be an mk.inner.{kind.__name__}, such as {example}; got {describe(value)}.{advice}"
        )


def _check_loss(loss: Any, key: Any) -> None:
    if not callable(loss):
        raise TypeError(f"loss must be a function loss(model, data, step), got {describe(loss)}.")
    try:
        signature = inspect.signature(loss)
    except ValueError:  # of what is written in C
        return
    arguments = (None,) * (3 if key is None else 4)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        form = "loss(model, data, step)" if key is None else "loss(model, data, step, key), since a key was given"
        hint = "Where it draws random numbers, hand on adapt's own key: descend(..., key=key). " if key is None else ""
        raise ValueError(
            f"loss is called {form}, but it takes {signature}. {hint}What else it needs goes into data."
        ) from error
