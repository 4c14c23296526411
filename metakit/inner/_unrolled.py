"""Differentiate every step of the inner loop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

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
from ._solver import AbstractSolver

# Up to this many steps the loop is written out, beyond it is a scan: XLA fuses across written-out steps, but compiles
# each. Meta-gradient of 4 tasks, MAML's Omniglot net, CPU seconds of scan against written out: compiling 10.7 and 12.3
# (1 step), 14.5 and 18.9 (2 steps); running 0.040 and 0.039, 0.097 and 0.085. Sinusoid, 5 steps: compiling 3.7 and 7.8,
# running the same. So one and two steps gain at a bounded price, and more do not.
_WRITTEN_OUT = 2


class Unrolled(AbstractAdjoint):
    r"""The exact gradient, by differentiating through every step.

    $$\frac{d\theta_K}{d\theta_0} = \prod_{t=K-1}^{0} \bigl(I - \alpha \nabla^2 L(\theta_t)\bigr)
    \quad\text{for SGD}$$

    | | |
    |---|---|
    | time | about 3 evaluations of the inner gradient a step |
    | memory | the activations of all K steps |
    | gradients | params, args, solver: all exact |

    The default, meant for up to about five steps; beyond that `MixedMode` and `Checkpointed` give the same numbers
    in less memory, and often in less time.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def objective(w, target, step):
    ...     return 0.5 * (w - target) ** 2
    >>> def adapted(w):
    ...     return mk.inner.Unrolled().solve(objective, mk.inner.SGD(0.5), w, jnp.ones(()), 2).params
    >>> float(adapted(jnp.zeros(()))), float(jax.grad(adapted)(jnp.zeros(())))
    (0.75, 0.25)
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
        check_steps(solver, num_steps)
        adapted, rest = split_params(params)

        def value(p, a, index):
            return objective(eqx.combine(p, rest), a, index)

        step = make_step(jax.value_and_grad(value), solver, rest, args, observe)
        carry = (adapted, solver.init(adapted))
        if not 1 <= num_steps <= _WRITTEN_OUT:
            return finish(*jax.lax.scan(step, carry, step_indices(num_steps)), rest)
        outputs = []
        for index in range(num_steps):
            carry, output = step(carry, jnp.asarray(index, dtype=jnp.int32))
            outputs.append(output)
        return finish(carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs), rest)
