"""The gradient of an outer loss through an inner loop."""

import logging
from typing import Any, Literal, NamedTuple

import equinox as eqx

from metakit._errors import require_option
from metakit._hyperparameter import held
from metakit._tree import inexact_leaves
from metakit._types import Scalar
from metakit.inner import AbstractAdjoint, AbstractSolver, Auto, Choice, Solution, choose_adjoint as choose_for_loop

from ._paths import check_paths
from ._problem import Bilevel, check_hyper, check_problem, objective, solver_of, start_of


class Hypergradient(NamedTuple):
    """What `mk.hypergradient` returns.

    - `value`: the outer loss at the end of the inner loop.
    - `gradient`: its gradient, of the structure of `hyper`, with `None` for leaves that are no floating-point arrays.
    - `solution`: the inner loop's `mk.inner.Solution`: the trained parameters, the losses along the way, and, from
      `mk.inner.Implicit`, the residual.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     lambda w, target, data, step: (w - target) ** 2, lambda w, target, data: w**2, mk.inner.SGD(0.5), 1)
    >>> float(mk.hypergradient(problem, jnp.ones(()), jnp.zeros(())).solution.params)
    1.0
    """

    value: Scalar
    gradient: Any
    solution: Solution


def hypergradient(
    problem: Bilevel,
    hyper: Any,
    params: Any = None,
    data: Any = None,
    *,
    adjoint: AbstractAdjoint | Literal["auto"] = "auto",
) -> Hypergradient:
    r"""The outer loss of a bilevel problem and its gradient with respect to the hyperparameters.

    $$E(\theta_K(\lambda), \lambda), \qquad
    \frac{dE}{d\lambda} = \partial_\lambda E + \partial_\theta E\, \frac{d\theta_K}{d\lambda}$$

    One call for all of them, by where `hyper` enters `problem`: rates, momenta or a preconditioner through `solver`;
    weight decay, weights of examples, strength of augmentation, a regulariser or the data themselves through `inner`;
    an initialisation through `init`. A pure function: `eqx.filter_jit` it in a loop, `eqx.filter_vmap` it over
    problems.

    **Arguments:**

    - `problem`: a `Bilevel`.
    - `hyper`: $\lambda$, any PyTree with at least one floating-point array; all of those are differentiated. Python
      floats are refused, as they would not be.
    - `params`: $\theta_0$, any PyTree; `None` where the problem has an `init`.
    - `data`: whatever else the problem's functions use; not differentiated. Default `None`.
    - `adjoint`: how the inner loop is differentiated, one of `mk.inner`; default `"auto"`, an exact one by size
      (`mk.choose_adjoint` says which, and why; so does the logger `"metakit"`, at level INFO).

    **Returns:** a `Hypergradient`: `value, gradient, solution = mk.hypergradient(...)`.

    **Raises:** `ValueError` when a hyperparameter acts in a way of which the adjoint gives no gradient (beside others,
    `mk.inner.Implicit` may drop what has no influence on a minimum), when `hyper` holds a Python float or no
    floating-point array, when `params` is missing or given beside an `init`, and what the adjoint itself raises:
    `mk.inner.Implicit` when the inner loop has not converged. `TypeError` for an adjoint that is none, such as the
    class of one, or a problem that is none.

    **Source:** Franceschi et al. 2018, "Bilevel Programming for Hyperparameter Optimization and Meta-Learning",
    equations 1 to 4, https://arxiv.org/abs/1806.04910.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     inner=lambda w, hyper, data, step: 0.5 * (w - data) ** 2,
    ...     outer=lambda w, hyper, data: w,
    ...     solver=lambda hyper: mk.inner.SGD(hyper["rate"]),
    ...     num_steps=2,
    ... )
    >>> value, gradient, _ = mk.hypergradient(problem, {"rate": jnp.asarray(0.5)}, jnp.zeros(()), jnp.ones(()))
    >>> float(value), float(gradient["rate"])  # of 1 - (1 - rate)**2
    (0.75, 1.0)
    """
    check_problem(problem)
    check_hyper(hyper)
    chosen = resolve(adjoint, problem, hyper, params, data)
    check_paths(problem, chosen, hyper, params, data)
    dropped = chosen.dropped(problem.num_steps)
    data, params = held(data), held(params)

    def outer(hyper: Any) -> tuple[Scalar, Solution]:
        start, solver = start_of(problem, hyper, params), solver_of(problem, hyper)
        # What Implicit may drop beside another way; closed off, it raises no error.
        start = held(start) if "params" in dropped else start
        solver = held(solver) if "solver" in dropped else solver
        solution = chosen.solve(objective(problem), solver, start, (hyper, data), problem.num_steps)
        return problem.outer(solution.params, hyper, data), solution

    (value, solution), gradient = eqx.filter_value_and_grad(outer, has_aux=True)(hyper)
    return Hypergradient(value, gradient, solution)


def choose_adjoint(
    problem: Bilevel, hyper: Any, params: Any = None, data: Any = None, *, memory_limit: int = Auto().memory_limit
) -> Choice:
    """Which adjoint `"auto"` uses for a bilevel problem, and why.

    **Arguments:** `problem`, `hyper`, `params`, `data` as for `mk.hypergradient`; `memory_limit`, bytes that the
    backward pass may keep, default 1 GiB.

    **Returns:** an `mk.inner.Choice`, by the rules of `mk.inner.choose_adjoint`. To use another limit than the
    default, `mk.hypergradient(..., adjoint=mk.inner.Auto(memory_limit))`, or the choice's `adjoint`.

    **Raises:** `TypeError` and `ValueError` for a `problem`, `hyper` or `params` that `mk.hypergradient` refuses, and
    for a `memory_limit` that is no positive whole number.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     lambda w, target, data, step: (w - target) ** 2, lambda w, target, data: w**2, mk.inner.SGD(0.5), 1000)
    >>> mk.choose_adjoint(problem, jnp.ones(()), jnp.zeros(())).reason[:48]
    '1000 steps of SGD on 1 parameter: MixedMode, as '
    """
    check_problem(problem)
    check_hyper(hyper)
    start, solver = start_of(problem, hyper, params), solver_of(problem, hyper)
    # What a forward-mode adjoint would carry: the numbers that depend on hyper where they enter the loop.
    moving = [hyper]
    if not isinstance(problem.solver, AbstractSolver):
        moving.append(solver)
    if problem.init is not None:
        moving.append(start)
    count = sum(leaf.size for leaf in inexact_leaves(moving))
    return choose_for_loop(
        objective(problem),
        solver,
        start,
        (hyper, data),
        problem.num_steps,
        memory_limit=memory_limit,
        num_hyperparameters=count,
    )


def resolve(
    adjoint: AbstractAdjoint | Literal["auto"], problem: Bilevel, hyper: Any, params: Any, data: Any
) -> AbstractAdjoint:
    """The adjoint itself."""
    if isinstance(adjoint, type) and issubclass(adjoint, AbstractAdjoint):
        raise TypeError(
            f"adjoint must be an adjoint or 'auto', got the class {adjoint.__name__}: {adjoint.__name__}(...)."
        )
    if not isinstance(adjoint, AbstractAdjoint | str):
        raise TypeError(f"adjoint must be one of mk.inner, such as mk.inner.MixedMode(), or 'auto', got {adjoint!r}.")
    if isinstance(adjoint, AbstractAdjoint) and not isinstance(adjoint, Auto):
        return adjoint
    if not isinstance(adjoint, Auto):
        require_option("adjoint", adjoint, ["auto"])
        adjoint = Auto()
    choice = choose_adjoint(problem, hyper, params, data, memory_limit=adjoint.memory_limit)
    logging.getLogger("metakit").info("adjoint chosen for %s", choice.reason)
    return choice.adjoint
