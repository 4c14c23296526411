"""Differentiate the last steps only."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit._errors import require_whole
from metakit._hyperparameter import held

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
from ._loop import refuse_gradient
from ._mixed_mode import mixed_value_and_gradient
from ._solver import AbstractSolver


class Truncated(AbstractAdjoint):
    r"""The gradient through the last $h$ steps, as if the parameters before them were constants.

    $$\frac{d\theta_K}{d\lambda} \approx \sum_{t=K-h}^{K-1} A_{K-1} \cdots A_{t+1} B_t, \qquad
    A_t = \frac{\partial(\theta_{t+1}, s_{t+1})}{\partial(\theta_t, s_t)}, \quad
    B_t = \frac{\partial(\theta_{t+1}, s_{t+1})}{\partial\lambda}$$

    for $\lambda$ in args or solver: the exact sum runs from $t = 0$. Where the loop contracts,
    $\lVert A \rVert \le \rho < 1$, the terms left out are of the order of $\rho^h$.

    | | |
    |---|---|
    | time | 1 evaluation of the inner gradient for each early step, about 3 for each of the last |
    | memory | $h$ states and the activations of one step, whatever K |
    | gradients | args, solver: yes, their effect on the last $h$ steps; **params: none**, unless $h \ge K$ |
    | biased | yes, by the early terms; exact for $h \ge K$ |

    Differentiating `params` through it raises, since every term of their gradient is left out. Losses, and what is
    observed, at early steps carry no gradient. As `MixedMode`, it has reverse-mode derivatives only.

    **Arguments:**

    - `last`: $h$, the steps that are differentiated, static, at least 1.

    **Raises:** `TypeError` for a `last` that is no whole number, `ValueError` for one below 1.

    **Source:** Shaban et al. 2019, "Truncated Back-propagation for Bilevel Optimization", section 3,
    https://arxiv.org/abs/1810.10667.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def adapted(target):
    ...     return mk.inner.Truncated(1).solve(
    ...         lambda w, target, step: 0.5 * (w - target) ** 2, mk.inner.SGD(0.5), jnp.zeros(()), target, 9).params
    >>> float(jax.grad(adapted)(jnp.ones(())))  # of the exact 1 - 0.5**9
    0.5
    """

    last: int = eqx.field(static=True)

    def __init__(self, last: int):
        require_whole("Truncated's last", last)
        if last < 1:
            raise ValueError(f"Truncated's last must be at least 1, got {last}: no step would have a gradient.")
        self.last = last

    def dropped(self, num_steps: int) -> frozenset[str]:
        return frozenset({"params"} if num_steps > self.last else ())

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
        early = max(num_steps - self.last, 0)
        adapted, rest = split_params(params)

        def value(p, a, index):
            return objective(eqx.combine(p, rest), a, index)

        indices = step_indices(num_steps)
        carry = (adapted, solver.init(adapted))
        head = None
        if early:
            message = (
                f"Truncated(last={self.last}) gives no gradient with respect to params after num_steps={num_steps}: "
                "all of its terms pass through the steps that are left out. Use mk.inner.MixedMode() for a learned "
                f"initialisation, Truncated({num_steps}), or stop the gradient (jax.lax.stop_gradient) where none is "
                "wanted."
            )
            carry = held(refuse_gradient(adapted, message)), held(carry[1])
            plain = make_step(jax.value_and_grad(value), held(solver), rest, held(args), observe)
            carry, head = held(jax.lax.scan(plain, carry, indices[:early]))
        if observe is not None:
            observe = eqx.filter_checkpoint(observe)
        step = make_step(mixed_value_and_gradient(value), solver, rest, args, observe)
        carry, outputs = jax.lax.scan(step, carry, indices[early:])
        if head is not None:
            outputs = jax.tree.map(lambda first, second: jnp.concatenate([first, second]), head, outputs)
        return finish(carry, outputs, rest)
