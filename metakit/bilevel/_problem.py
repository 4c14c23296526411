"""What a bilevel problem is."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int

from metakit._static import as_node
from metakit._tree import inexact_leaves
from metakit._types import Scalar
from metakit.inner import SGD, AbstractAdjoint, AbstractSolver, Solution, check_steps


class Bilevel(eqx.Module):
    r"""An outer loss of the end of an inner loop.

    $$\min_\lambda\; E(\theta_K, \lambda), \qquad
    \theta_0, \lambda \;\xrightarrow{\;K \text{ steps of } u \text{ on } L(\theta, \lambda, t)\;}\; \theta_K$$

    **Arguments:**

    - `inner`: $L$, `inner(params, hyper, data, step) -> scalar`. `step` counts from 0, and may index minibatches.
    - `outer`: $E$, `outer(params, hyper, data) -> scalar`.
    - `solver`: $u$, the update rule, such as `mk.inner.SGD(0.1)`; or a function `solver(hyper) -> solver` where rates,
      momenta or a preconditioner are among the hyperparameters.
    - `num_steps`: $K$, static, at least 0.
    - `init`: `init(hyper) -> params` where the initialisation depends on the hyperparameters; `None`, the default,
      when it is given with each call.

    `hyper` is any PyTree: what is differentiated. `data` is any PyTree: what is not. Arrays belong into one of the two,
    not into the closures of these functions, where no gradient and no `vmap` reaches them.

    **Raises:** `TypeError` for an `inner`, `outer`, `solver` or `init` that is not what it should be; `ValueError` for
    a negative `num_steps`, or more steps than the solver has rates for.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     inner=lambda w, decay, data, step: jnp.sum((w - data["train"]) ** 2) + decay * jnp.sum(w**2),
    ...     outer=lambda w, decay, data: jnp.sum((w - data["valid"]) ** 2),
    ...     solver=mk.inner.SGD(0.1),
    ...     num_steps=100,
    ... )
    >>> problem.num_steps
    100
    """

    inner: Callable[[Any, Any, Any, Int[Array, ""]], Scalar] = eqx.field(converter=as_node)
    outer: Callable[[Any, Any, Any], Scalar] = eqx.field(converter=as_node)
    solver: AbstractSolver | Callable[[Any], AbstractSolver] = eqx.field(converter=as_node)
    num_steps: int = eqx.field(static=True)
    init: Callable[[Any], Any] | None = eqx.field(converter=as_node, default=None)

    def __check_init__(self):
        for name in ("inner", "outer"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function, got {type(getattr(self, name)).__name__}.")
        if not isinstance(self.solver, AbstractSolver) and not callable(self.solver):
            raise TypeError(
                "solver must be an update rule such as mk.inner.SGD(0.1), or a function that makes one from the "
                f"hyperparameters, got {type(self.solver).__name__}."
            )
        if self.init is not None and not callable(self.init):
            raise TypeError(
                f"init must be a function of the hyperparameters, got {type(self.init).__name__}. Give parameters that "
                "do not depend on them with each call: mk.hypergradient(problem, hyper, params, data)."
            )
        # A solver that is yet to be made may turn out to have fewer rates; `solve` checks it again.
        check_steps(self.solver if isinstance(self.solver, AbstractSolver) else SGD(1.0), self.num_steps)


def check_problem(problem: Any) -> None:
    """Refuse what is no bilevel problem."""
    if not isinstance(problem, Bilevel):
        raise TypeError(f"problem must be an mk.Bilevel(inner, outer, solver, num_steps), got {problem!r}.")


def check_hyper(hyper: Any) -> None:
    """Refuse hyperparameters that would get no gradient without a word."""
    for path, leaf in jax.tree.leaves_with_path(hyper):
        if isinstance(leaf, float) and not isinstance(leaf, np.generic):  # NumPy's float64 is a float of Python's too
            raise ValueError(
                f"hyper{jax.tree_util.keystr(path)} is the Python float {leaf}, which would get no gradient: give "
                f"jnp.asarray({leaf}), or move it to data."
            )
    if not inexact_leaves(hyper):
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in jax.tree.leaves(hyper)})) or "nothing"
        raise ValueError(
            f"hyper holds no floating-point array, so there is nothing to differentiate; it holds {kinds}. Give "
            "jnp.asarray(0.1), or a PyTree of such arrays."
        )


def objective(problem: Bilevel) -> Callable[[Any, Any, Int[Array, ""]], Scalar]:
    """The inner loss in the form that adjoints take: `args` is `(hyper, data)`."""

    def inner(params: Any, args: Any, step: Int[Array, ""]) -> Scalar:
        hyper, data = args
        return problem.inner(params, hyper, data, step)

    return inner


def solver_of(problem: Bilevel, hyper: Any) -> AbstractSolver:
    """The update rule, which may depend on the hyperparameters."""
    if isinstance(problem.solver, AbstractSolver):
        return problem.solver
    solver = problem.solver(hyper)
    if not isinstance(solver, AbstractSolver):
        raise TypeError(
            f"the problem's solver(hyper) must return an update rule such as mk.inner.SGD(0.1), got "
            f"{type(solver).__name__}."
        )
    return solver


def start_of(problem: Bilevel, hyper: Any, params: Any) -> Any:
    """Where the inner loop starts."""
    if problem.init is None:
        if params is None:
            raise ValueError(
                "the problem has no init, so the parameters that the inner loop starts from must be given: "
                "mk.hypergradient(problem, hyper, params, data)."
            )
        return params
    if params is not None:
        raise ValueError(
            "the inner loop starts from the problem's init(hyper), but params was given as well; give None, or a "
            "problem without init."
        )
    return problem.init(hyper)


def solve(problem: Bilevel, adjoint: AbstractAdjoint, hyper: Any, params: Any, data: Any) -> Solution:
    """Run the inner loop."""
    start, solver = start_of(problem, hyper, params), solver_of(problem, hyper)
    return adjoint.solve(objective(problem), solver, start, (hyper, data), problem.num_steps)
