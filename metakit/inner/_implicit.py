"""Differentiate the minimum instead of the path to it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from metakit._errors import raise_or_nan, require_number
from metakit._tree import global_norm, widest_dtype

from ._adjoint import AbstractAdjoint, Objective, Observe, Solution
from ._loop import Inputs, Loop, inexact, prepare, run, value_of
from ._solver import AbstractSolver

# The default solve's budget. Its tolerance is two thirds of the dtype's digits: 4e-11 and 2e-5.
_MAX_STEPS = 1000


class Implicit(AbstractAdjoint):
    r"""The gradient of a minimum, by the implicit function theorem.

    If the loop has reached $\nabla_\theta L(\theta^*, a) = 0$, then, whatever the path,

    $$\frac{d\theta^*}{da} = -H^{-1} \partial_a \nabla_\theta L, \qquad H = \nabla^2_\theta L(\theta^*, a) + \delta I$$

    A cotangent $v$ of $\theta^*$ needs one linear solve $H u = v$, of which only products with $H$ are ever formed, and
    then $-u^\top \partial_a \nabla_\theta L$, taken forward over reverse.

    | | |
    |---|---|
    | time | 1 evaluation of the inner gradient a step; about 2 a product with $H$, of which the solve takes some |
    | memory | one step, whatever K |
    | gradients | args: exact at the minimum. **params, solver: none**, since the minimum does not depend on them |
    | biased | where the loop has not converged; with `damping`; with a linear solve that stops early |

    The bias of a loop that stops short is of the order of $\lVert\nabla L\rVert / \mu$ for curvatures above $\mu$.
    Differentiating `params` or `solver` through it raises, and so does differentiating `losses`, `state` or `observed`,
    which belong to the path. An objective that changes with `step` has no one minimum; it is taken as of the last step.

    **When the inner loop has not converged.** `Solution.residual` holds $\lVert\nabla_\theta L(\theta_K)\rVert_2$.
    Where it exceeds `tolerance` and a gradient is asked for, a `ValueError` names it; in a compiled program, which
    cannot raise, the gradient is NaN. The same holds for a linear solve that fails.

    **Arguments:**

    - `linear_solver`: a lineax solver, such as `lx.CG(rtol=1e-6, atol=1e-6)`, `lx.GMRES(...)` where $H$ may be
      indefinite, or `mk.inner.Neumann(...)`; static. It solves for $v / \lVert v \rVert$, so that absolute tolerances
      mean something. A solver with a `max_steps` of its own may stop there, which is an approximation that you have
      asked for. Default: conjugate gradients to two thirds of the dtype's digits, which must converge in 1,000 steps.
    - `damping`: $\delta \ge 0$, default 0; static. It makes a flat or slightly indefinite Hessian solvable, and biases
      the gradient.
    - `tolerance`: the largest residual that counts as converged, an absolute number in the unit of the gradient;
      default 1e-3, which suits a loss of size 1. `None` never checks.

    **Raises:** `ValueError` for a negative `damping` or a `tolerance` that is not positive; `TypeError` for what is no
    number, or a `linear_solver` that is none.

    **Source:** Bengio 2000, "Gradient-based optimization of hyperparameters",
    https://doi.org/10.1162/089976600300015187; Pedregosa 2016, https://arxiv.org/abs/1602.02355; for
    meta-learning Rajeswaran et al. 2019, https://arxiv.org/abs/1909.04630 (`mk.maml.imaml`).

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def minimum(target):  # of half a square, which is the target itself
    ...     return mk.inner.Implicit().solve(
    ...         lambda w, target, step: 0.5 * (w - target) ** 2, mk.inner.SGD(0.5), jnp.zeros(()), target, 20).params
    >>> float(jax.grad(minimum)(jnp.ones(())))
    1.0
    """

    linear_solver: lx.AbstractLinearSolver | None = eqx.field(static=True)
    damping: float = eqx.field(static=True)
    tolerance: float | None = eqx.field(static=True)

    def __init__(
        self,
        linear_solver: lx.AbstractLinearSolver | None = None,
        damping: float = 0.0,
        tolerance: float | None = 1e-3,
    ):
        if linear_solver is not None and not isinstance(linear_solver, lx.AbstractLinearSolver):
            raise TypeError(
                f"Implicit's linear_solver must be one of lineax or mk.inner.Neumann, got {linear_solver!r}. Give a "
                "damping or a tolerance by name, as in Implicit(damping=0.1)."
            )
        require_number("Implicit's damping", damping)
        if tolerance is not None:
            require_number("Implicit's tolerance", tolerance)
        if not damping >= 0:
            raise ValueError(f"damping must be at least 0, got {damping}. It is added to the Hessian's diagonal.")
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {tolerance}. None switches the check off.")
        self.linear_solver = linear_solver
        self.damping = float(damping)
        self.tolerance = tolerance

    def dropped(self, num_steps: int) -> frozenset[str]:
        del num_steps
        return frozenset({"params", "solver"})

    def solve(
        self,
        objective: Objective,
        solver: AbstractSolver,
        params: Any,
        args: Any,
        num_steps: int,
        *,
        observe: Observe | None = None,
    ) -> Solution:
        inputs, loop = prepare(objective, solver, params, args, num_steps, observe)
        solution = _minimum(inputs, loop, self)
        return eqx.tree_at(lambda s: s.params, solution, eqx.combine(solution.params, inputs.rest))


@eqx.filter_custom_vjp
def _minimum(inputs: Inputs, loop: Loop, how: Implicit) -> Solution:
    del how
    return _minimise(inputs, loop)[0]


@_minimum.def_fwd
def _forward(perturbed: Inputs, inputs: Inputs, loop: Loop, how: Implicit) -> Any:
    for name in ("params", "solver"):
        if any(jax.tree.leaves(getattr(perturbed, name))):
            raise ValueError(
                f"Implicit gives no gradient with respect to {name}: a minimum does not depend on where or how fast "
                "the loop went. Use mk.inner.MixedMode() for a learned initialisation, rate or momentum; stop the "
                "gradient (jax.lax.stop_gradient) where none is wanted; or let the objective pull towards the "
                "initialisation, as mk.maml.imaml does."
            )
    solution, residual = _minimise(inputs, loop)
    # For its error, before the linear solve; what is compiled gets its NaN in the backward pass.
    raise_or_nan(_unfinished(residual, how), (), lambda: _not_converged(residual, loop, how))
    return solution, (solution.params, residual)


@_minimum.def_bwd
def _backward(residuals: Any, cotangents: Solution, perturbed: Inputs, inputs: Inputs, loop: Loop, how: Implicit):
    params, residual = residuals
    along_the_path = (cotangents.losses, cotangents.state, cotangents.observed, cotangents.residual)
    if jax.tree.leaves(along_the_path):
        raise ValueError(
            "Implicit differentiates the minimum, not the path: only Solution.params has a gradient; losses, state, "
            "observed and residual have none. For a loss at every step (MAML's step_weights) use mk.inner.MixedMode()."
        )
    value, last = value_of(inputs, loop), _last(loop)
    v = jax.tree.map(lambda leaf, ct: jnp.zeros_like(leaf) if ct is None else ct, params, cotangents.params)
    u, failed = _solve(lambda p: jax.grad(value)(p, inputs.args, last), params, v, how)

    moving, still = eqx.partition(inputs.args, perturbed.args)

    def slope(p: Any) -> Any:
        return jax.grad(lambda a: value(p, eqx.combine(a, still), last))(moving)

    through_args = jax.tree.map(jnp.negative, jax.jvp(slope, (params,), (u,))[1])
    through_args = raise_or_nan(failed, through_args, _not_solved)
    through_args = raise_or_nan(_unfinished(residual, how), through_args, lambda: _not_converged(residual, loop, how))
    nothing = jax.tree.map(lambda _: None, inexact(inputs))
    return eqx.tree_at(lambda tree: tree.args, nothing, through_args, is_leaf=lambda leaf: leaf is None)


def _minimise(inputs: Inputs, loop: Loop) -> tuple[Solution, Array]:
    solution = run(inputs, loop)
    slope = jax.grad(value_of(inputs, loop))(solution.params, inputs.args, _last(loop))
    residual = global_norm(slope)
    return Solution(solution.params, solution.losses, solution.state, solution.observed, residual), residual


def _solve(slope: Any, params: Any, v: Any, how: Implicit) -> tuple[Any, Array]:
    """The solution of $(H + \\delta I) u = v$, and whether the solver failed."""

    # A linear solver takes inner products of whole trees, so that all of its leaves have one dtype.
    dtype = widest_dtype(jax.tree.leaves(v))

    def product(direction: Any) -> Any:
        curved = jax.jvp(slope, (params,), (_like(params, direction),))[1]
        return jax.tree.map(lambda h, d: h.astype(dtype) + jnp.asarray(how.damping, dtype) * d, curved, direction)

    leaves = jax.tree.leaves(v)
    size, eps = sum(leaf.size for leaf in leaves), max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    linear_solver = how.linear_solver
    if linear_solver is None:
        tolerance = eps ** (2 / 3)
        linear_solver = lx.CG(rtol=tolerance, atol=tolerance, max_steps=min(10 * size, _MAX_STEPS))
    # The tag says only that v H v is not negative, which holds at a minimum.
    length = global_norm(v)
    length = jnp.where(length == 0, jnp.ones_like(length), length)
    unit = jax.tree.map(lambda leaf: leaf.astype(dtype) / length, v)
    operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: unit), lx.positive_semidefinite_tag)
    solved = lx.linear_solve(operator, unit, linear_solver, throw=False)
    failed = solved.result != lx.RESULTS.successful
    if how.linear_solver is not None:
        failed = failed & (solved.result != lx.RESULTS.max_steps_reached)
    u = jax.tree.map(lambda leaf: leaf * length, solved.value)
    return _like(params, u), failed | ~jnp.isfinite(global_norm(u))


def _like(params: Any, tree: Any) -> Any:
    """The tree in the dtypes of the parameters."""
    return jax.tree.map(lambda leaf, new: new.astype(leaf.dtype), params, tree)


def _last(loop: Loop) -> Array:
    return jnp.asarray(max(loop.num_steps - 1, 0), jnp.int32)


def _unfinished(residual: Array, how: Implicit) -> Array:
    if how.tolerance is None:
        return jnp.zeros((), bool)
    return ~(residual <= how.tolerance)


def _not_converged(residual: Array, loop: Loop, how: Implicit) -> ValueError:
    return ValueError(
        f"the inner problem has not converged after {loop.num_steps} steps: its gradient has norm "
        f"{float(residual):.3g}, and Implicit(tolerance={how.tolerance}) asks for less. Take more steps or a better "
        "rate, raise tolerance to accept the bias, or differentiate the path itself with mk.inner.MixedMode()."
    )


def _not_solved() -> ValueError:
    return ValueError(
        "Implicit's linear solve with the Hessian failed. At a saddle or a flat minimum the Hessian is not positive "
        "definite: add damping, as in Implicit(damping=0.1), or a regulariser to the objective; for an indefinite "
        "one use linear_solver=lx.GMRES(rtol=1e-6, atol=1e-6); and to accept an approximate solve give the solver a "
        "budget, linear_solver=lx.CG(rtol=1e-6, atol=1e-6, max_steps=20)."
    )
