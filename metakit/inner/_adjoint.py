"""The interface of the inner loop, and the step that every way of differentiating it shares."""

import abc
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._solver import AbstractSolver, Step

Objective: TypeAlias = Callable[[Any, Any, Step], Float[Array, ""]]
Observe: TypeAlias = Callable[[Any, Any, Step], Any]
Carry: TypeAlias = tuple[Any, Any]


class Solution(eqx.Module):
    """What an inner loop returns.

    - `params`: the adapted parameters, of the structure that went in.
    - `losses`: `[num_steps]`, the objective *before* each step; they come with the gradients, so they cost nothing.
    - `state`: the solver's state after the last step.
    - `observed`: what `observe` returned after each step, with a leading axis `[num_steps]`; `None` without one.
    - `residual`: how far from a minimum the loop stopped, the norm of the objective's gradient at `params`, from the
      adjoint whose gradient depends on it (`Implicit`); `None` from the others.

    >>> import jax.numpy as jnp, metakit as mk
    >>> objective = lambda params, args, step: jnp.sum(params**2)
    >>> solution = mk.inner.Unrolled().solve(objective, mk.inner.SGD(0.25), jnp.ones(1), None, 2)
    >>> solution.params.tolist(), solution.losses.tolist()
    ([0.25], [1.0, 0.25])
    """

    params: Any
    losses: Float[Array, " num_steps"]
    state: Any
    observed: Any = None
    residual: Float[Array, ""] | None = None


class AbstractAdjoint(eqx.Module):
    r"""Runs an inner loop, and decides how derivatives go through it.

    $$\theta_{t+1}, s_{t+1} = u_\eta\bigl(\nabla_\theta L(\theta_t, a, t),\, s_t,\, \theta_t,\, t\bigr),
    \qquad t = 0, \dots, K-1$$

    Every adjoint returns the same numbers and takes the same arguments; they differ in which derivatives of
    $\theta_K$ with respect to $\theta_0$, $a$ and $\eta$ exist and in what they cost.
    """

    @abc.abstractmethod
    def dropped(self, num_steps: int) -> frozenset[str]:
        """Which of `"params"`, `"args"` and `"solver"` have no gradient through `Solution.params`.

        Callers that can name what they differentiate (`mk.maml`, `mk.hypergradient`) use it to refuse a learned number
        that would never move.

        **Arguments:** `num_steps`, static.

        **Returns:** a set of those names; empty for an exact adjoint.
        """

    @abc.abstractmethod
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
        """Take `num_steps` inner steps from `params`.

        **Arguments:**

        - `objective`: `objective(params, args, step) -> scalar`. Whatever should be differentiated is inside
          `params`, `args` or `solver`; nothing traced may be closed over.
        - `solver`: the update rule; its hyperparameters are differentiated too.
        - `params`: any PyTree with at least one floating-point array. Those arrays are adapted, other leaves pass
          through.
        - `args`: any PyTree: the data, the frozen parameters, hyperparameters of the loss.
        - `num_steps`: static, at least 0; 0 returns `params` unchanged.
        - `observe`: `observe(params, args, step)`, called after each step with the new parameters and that step's
          index; its results come back stacked. The place for a query loss after every step.

        **Returns:** a `Solution`.

        **Raises:** `ValueError` when `num_steps` is negative or more than the solver has rates for, or when `params`
        holds no floating-point array.
        """


def check_steps(solver: AbstractSolver, num_steps: int) -> None:
    """Refuse a number of inner steps that cannot be taken.

    A traced step index beyond the end of an array of rates is clamped by XLA without a word, hence this check on
    the static count.

    **Arguments:** `solver`, whose `max_steps` counts; `num_steps`, static.

    **Raises:** `TypeError` when `num_steps` is not a Python int; `ValueError` when it is negative, or more than
    the solver has rates for.

    >>> import metakit as mk
    >>> check_steps(mk.inner.SGD(0.1), -1)
    Traceback (most recent call last):
    ...
    ValueError: num_steps must be at least 0, got -1. 0 steps return the parameters unchanged.
    """
    if not isinstance(num_steps, int) or isinstance(num_steps, bool):
        raise TypeError(f"num_steps must be a Python int (it is static), got {type(num_steps).__name__} {num_steps!r}.")
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}. 0 steps return the parameters unchanged.")
    limit = solver.max_steps()
    if limit is not None and num_steps > limit:
        raise ValueError(
            f"num_steps={num_steps} was asked, but {type(solver).__name__} holds rates for {limit} steps only, and no "
            f"rate was learned for the later ones. Adapt with num_steps <= {limit} (in evaluation as well), or build "
            f"the solver with num_steps={num_steps} before training."
        )


def split_params(params: Any) -> tuple[Any, Any]:
    """The arrays that are adapted, and the rest."""
    adapted, rest = eqx.partition(params, eqx.is_inexact_array)
    if not jax.tree.leaves(adapted):
        raise ValueError(
            "params holds no floating-point array, so there is nothing to adapt; got leaves of types "
            f"{sorted({type(leaf).__name__ for leaf in jax.tree.leaves(params)})}."
        )
    return adapted, rest


def make_step(
    value_and_gradient: Callable[[Any, Any, Step], tuple[Array, Any]],
    solver: AbstractSolver,
    rest: Any,
    args: Any,
    observe: Observe | None,
) -> Callable[[Carry, Step], tuple[Carry, tuple[Array, Any]]]:
    """One inner step in the form `jax.lax.scan` wants."""

    def step(carry: Carry, index: Step) -> tuple[Carry, tuple[Array, Any]]:
        params, state = carry
        loss, gradient = value_and_gradient(params, args, index)
        params, state = solver.update(gradient, state, params, index)
        observed = None if observe is None else observe(eqx.combine(params, rest), args, index)
        return (params, state), (loss, observed)

    return step


def step_indices(num_steps: int) -> Array:
    """`0..num_steps-1`."""
    return jnp.arange(num_steps, dtype=jnp.int32)


def finish(carry: Carry, outputs: tuple[Array, Any], rest: Any) -> Solution:
    """The solution from the end of a scan."""
    (params, state), (losses, observed) = carry, outputs
    return Solution(eqx.combine(params, rest), losses, state, observed)
