"""Which hyperparameters reach the outer loss, and by which way."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from metakit.inner import AbstractAdjoint, AbstractSolver, Implicit

from ._problem import Bilevel, solver_of, start_of


def _used(function: Callable[[Any], Any], floating: Any) -> list[bool]:
    """For each array of `floating`, whether the function's result depends on it."""
    jaxpr = jax.make_jaxpr(lambda tree: eqx.filter(function(tree), eqx.is_inexact_array))(floating).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return list(used)


def check_paths(problem: Bilevel, adjoint: AbstractAdjoint, hyper: Any, params: Any, data: Any) -> None:
    """Refuse a hyperparameter that acts in a way of which the adjoint gives no gradient.

    What `Implicit` drops has no influence on a minimum: beside another way it may be dropped, once the loop is known to
    have converged.

    **Raises:** `ValueError` that names the first such leaf.
    """
    dropped = adjoint.dropped(problem.num_steps)
    if not dropped:
        return
    floating, others = eqx.partition(hyper, eqx.is_inexact_array)
    start, step = start_of(problem, hyper, params), jnp.zeros((), jnp.int32)

    def whole(tree: Any) -> Any:
        return eqx.combine(tree, others)

    ways = {
        "args": _used(lambda tree: problem.inner(start, whole(tree), data, step), floating),
        "solver": _used(lambda tree: _made(problem, whole(tree)), floating),
        "params": _used(lambda tree: None if problem.init is None else problem.init(whole(tree)), floating),
    }
    vanishes = isinstance(adjoint, Implicit) and adjoint.tolerance is not None
    flat, _ = jax.tree_util.tree_flatten_with_path(floating)
    paths = [jax.tree_util.keystr(path) or "hyper" for path, _ in flat]
    for i, path in enumerate(paths):
        through = {way for way, used in ways.items() if used[i]}
        lost = through & dropped
        if lost and not (vanishes and through - dropped):
            what = " and ".join(_WAYS[way] for way in sorted(lost))
            raise ValueError(
                f"the hyperparameter {path} acts through {what}, of which {type(adjoint).__name__} gives no gradient "
                f"after num_steps={problem.num_steps}: it would be left out in silence. Use an exact adjoint, such as "
                'mk.inner.MixedMode() or "auto", or take the leaf out of hyper.'
            )


_WAYS = {"args": "the inner loss", "solver": "the solver", "params": "the initialisation"}


def _made(problem: Bilevel, hyper: Any) -> Any:
    return None if isinstance(problem.solver, AbstractSolver) else solver_of(problem, hyper)
