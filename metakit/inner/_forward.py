"""Carry the derivatives along with the parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit._tree import from_vector, unit_directions, widest_dtype

from ._adjoint import AbstractAdjoint, Objective, Observe, Solution
from ._loop import Inputs, Loop, inexact, prepare, run
from ._solver import AbstractSolver


class Forward(AbstractAdjoint):
    r"""The exact gradient, by forward-mode derivatives that travel with the loop.

    $$Z_{t+1} = A_t Z_t + B_t, \qquad \frac{dE}{d\lambda} = \partial_\lambda E + \partial_\theta E\, Z_K, \qquad
    A_t = \frac{\partial(\theta_{t+1}, s_{t+1})}{\partial(\theta_t, s_t)}, \quad
    B_t = \frac{\partial(\theta_{t+1}, s_{t+1})}{\partial\lambda}$$

    with one column of $Z$ for every number $\lambda$ that is differentiated, computed together by one batched
    Jacobian-vector product a step.

    | | |
    |---|---|
    | time | about $2N$ evaluations of the inner gradient a step, for $N$ numbers |
    | memory | $N$ states and $N$ times the activations of one step, whatever K |
    | gradients | params, args, solver: all exact |

    For few hyperparameters and many steps: a rate and a weight decay over a million steps. Only what is really
    differentiated counts: close the rest off with `jax.lax.stop_gradient`, or use `mk.hypergradient`, which does. In a
    MAML learner the initialisation is differentiated, and $N$ is at least its size.

    `jax.grad` and `jax.vjp` go through it, `jax.jvp` does not (`Unrolled` has forward-mode derivatives). For
    hypergradients *while* the loop runs see `mk.real_time_hypergradient`.

    **Source:** Franceschi et al. 2017, "Forward and Reverse Gradient-Based Hyperparameter Optimization", section 3.2,
    https://arxiv.org/abs/1703.01785.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def adapted(rate):
    ...     return mk.inner.Forward().solve(
    ...         lambda w, _, step: 0.5 * w**2, mk.inner.SGD(rate), jnp.ones(()), None, 2).params
    >>> float(jax.grad(adapted)(jnp.asarray(0.5)))  # of (1 - rate)**2
    -1.0
    """

    def dropped(self, num_steps: int) -> frozenset[str]:
        del num_steps
        return frozenset()

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
        solution = _carried(inputs, loop)
        return eqx.tree_at(lambda s: s.params, solution, eqx.combine(solution.params, inputs.rest))


@eqx.filter_custom_vjp
def _carried(inputs: Inputs, loop: Loop) -> Solution:
    return run(inputs, loop)


@_carried.def_fwd
def _forward(perturbed: Inputs, inputs: Inputs, loop: Loop) -> Any:
    moving, still = eqx.partition(inputs, perturbed)

    def path(moving: Any) -> Any:
        solution = run(eqx.combine(moving, still), loop)
        return eqx.partition(solution, eqx.is_inexact_array)

    def along(direction: Any) -> Any:
        return jax.jvp(path, (moving,), (direction,), has_aux=True)

    # The loop itself is not mapped, only its derivatives are.
    ends, jacobian, others = eqx.filter_vmap(along, out_axes=(None, eqx.if_array(0), None))(unit_directions(moving))
    return eqx.combine(ends, others), jacobian


@_carried.def_bwd
def _backward(jacobian: Any, cotangents: Solution, perturbed: Inputs, inputs: Inputs, loop: Loop) -> Any:
    del loop
    columns = jax.tree.leaves(
        jax.tree.map(
            lambda ct, j: None if ct is None else jnp.tensordot(j, ct, axes=ct.ndim),
            cotangents,
            jacobian,
            is_leaf=lambda leaf: leaf is None,
        )
    )
    dtype = widest_dtype(columns)
    total = jnp.sum(jnp.stack([column.astype(dtype) for column in columns]), axis=0)
    moving = inexact(eqx.filter(inputs, perturbed))
    return from_vector(total, moving)
