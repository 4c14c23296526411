"""Differentiate inner gradients forward over reverse."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from ._adjoint import (
    AbstractAdjoint,
    Objective,
    Observe,
    Solution,
    check_steps,
    finish,
    make_step,
    split_params,
    step_indices,
)
from ._closures import refuse_traced_closures
from ._segments import scan_in_segments
from ._solver import AbstractSolver, Step


class MixedMode(AbstractAdjoint):
    r"""The exact gradient, with the second derivatives taken forward over reverse.

    The backward pass needs, for each step and a cotangent $v$ of the inner gradient, the product
    $v^\top \partial_{(\theta, a)} \nabla_\theta L(\theta, a)$. Second derivatives are symmetric, so

    $$v^\top \partial_{(\theta, a)} \nabla_\theta L
      = \nabla_{(\theta, a)} \bigl\langle \nabla_\theta L, v \bigr\rangle
      = \left.\frac{d}{d\epsilon} \nabla_{(\theta, a)} L(\theta + \epsilon v, a)\right|_{\epsilon = 0}$$

    which is one `jax.jvp` through one `jax.grad`: nothing of the gradient's own computation is stored. Reverse over
    reverse, as in `Unrolled`, stores the activations of every step's backward pass.

    | | |
    |---|---|
    | time | about 3 evaluations of the inner gradient a step |
    | memory | K states and the activations of one step; $2\sqrt K$ states with `checkpointed` |
    | gradients | params, args, solver: all exact |

    A state is the parameters and whatever the solver carries. `checkpointed=True` keeps the states of about
    $\sqrt K$ steps, and takes the steps between them once more on the way back, for 1 more evaluation of the inner
    gradient a step: for loops so long that K states do not fit. Only reverse-mode derivatives of the result exist
    (`jax.grad`, `jax.vjp`); `jax.jvp` raises.

    **Arguments:**

    - `checkpointed`: static; default `False`.

    **Raises:** `TypeError` for a `checkpointed` that is no truth value; of `solve`: `ValueError` when the objective
    closes over an array that JAX is tracing; hand it in by `args`.

    **Source:** Kemaev et al. 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation" (MixFlow-MG), ICML,
    https://arxiv.org/abs/2505.00793.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def adapted(w):
    ...     return mk.inner.MixedMode().solve(
    ...         lambda w, _, step: 0.5 * w**2, mk.inner.SGD(0.5), w, None, 10).params
    >>> float(jax.grad(adapted)(jnp.ones(()))) == 0.5**10
    True
    """

    checkpointed: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not isinstance(self.checkpointed, bool):
            raise TypeError(f"MixedMode's checkpointed must be True or False, got {self.checkpointed!r}.")

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
        check_steps(solver, num_steps)
        refuse_traced_closures(objective, params, args)
        adapted, rest = split_params(params)

        def value(p, a, index):
            return objective(eqx.combine(p, rest), a, index)

        if observe is not None:
            # What is observed may be a network on the query set; its activations are recomputed, one step at a time.
            observe = eqx.filter_checkpoint(observe)
        step = make_step(mixed_value_and_gradient(value), solver, rest, args, observe)
        carry = (adapted, solver.init(adapted))
        if self.checkpointed:
            return finish(*scan_in_segments(step, carry, num_steps), rest)
        return finish(*jax.lax.scan(step, carry, step_indices(num_steps)), rest)


def mixed_value_and_gradient(value: Any) -> Any:
    """`jax.value_and_grad(value)` with a backward pass that is forward over reverse."""

    def value_and_gradient(params: Any, args: Any, index: Step) -> tuple[Array, Any]:
        floating, others = eqx.partition(args, eqx.is_inexact_array)
        # Labels and keys are arguments too, since a custom rule may not close over what is traced; functions are not.
        discrete, static = eqx.partition(others, eqx.is_array)

        def of_arrays(p, a, d, i):
            return value(p, eqx.combine(a, d, static), i)

        @jax.custom_vjp
        def evaluate(p, a, d, i):
            return jax.value_and_grad(of_arrays)(p, a, d, i)

        def forward(p, a, d, i):
            # Not evaluate(p, a, d, i): a forward rule that calls its own function has silently wrong second
            # derivatives inside a scan (JAX 0.10.2, reverse over reverse; right outside a scan).
            return jax.value_and_grad(of_arrays)(p, a, d, i), (p, a, d, i)

        def backward(saved, cotangents):
            p, a, d, i = saved
            of_loss, of_gradient = cotangents
            first, second = jax.jvp(lambda q: jax.grad(of_arrays, argnums=(0, 1))(q, a, d, i), (p,), (of_gradient,))
            # The loss itself may be differentiated as well; its gradient is the primal of the same jvp.
            total = jax.tree.map(lambda g, h: of_loss.astype(g.dtype) * g + h, first, second)
            return *total, None, None

        evaluate.defvjp(forward, backward)
        return evaluate(params, floating, discrete, index)

    return value_and_gradient
