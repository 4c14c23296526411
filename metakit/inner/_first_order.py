"""Leave the second derivatives out."""

from typing import Any

import equinox as eqx
import jax

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


class FirstOrder(AbstractAdjoint):
    r"""The first-order approximation: inner gradients count as constants.

    $$\theta_{t+1} = u_\eta(\mathrm{sg}[g_t], s_t, \theta_t, t), \qquad
    \frac{d\theta_K}{d\theta_0} = I \quad\text{for SGD}$$

    so that the meta-gradient is the plain gradient of the query loss at the adapted parameters (FOMAML).

    | | |
    |---|---|
    | time | 1 evaluation of the inner gradient a step |
    | memory | one step; K x parameters once a rate is differentiated |
    | gradients | biased: the second derivatives are missing; some are zero, see below |

    Which gradients survive, through `Solution.params`:

    - `params`: yes, as if the inner gradients did not depend on them;
    - `solver`: yes for every hyperparameter, but only its direct effect on each update, not its effect through later
      inner gradients (exact for `num_steps=1`);
    - `args`: **none**. Data, frozen parameters (ANIL's body) and loss hyperparameters influence the adapted
      parameters only through the inner gradients. They keep whatever gradient they have outside the inner loop, for
      ANIL's body the one through the query loss.

    `Solution.losses` keep their ordinary gradient along this path.

    The stop-gradient must be on the *gradient*: on the parameters it would zero the whole meta-gradient.

    **Source:** Finn et al. 2017, section 5.2, https://arxiv.org/abs/1703.03400; Nichol et al. 2018,
    https://arxiv.org/abs/1803.02999.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def adapted(w):
    ...     return mk.inner.FirstOrder().solve(
    ...         lambda w, _, step: 0.5 * w**2, mk.inner.SGD(0.5), w, None, 2).params
    >>> float(adapted(jnp.ones(()))), float(jax.grad(adapted)(jnp.ones(())))
    (0.25, 1.0)
    """

    def dropped(self, num_steps: int) -> frozenset[str]:
        del num_steps
        return frozenset({"args"})

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

        def value_and_gradient(p, a, index):
            loss, gradient = jax.value_and_grad(value)(p, a, index)
            return loss, jax.lax.stop_gradient(gradient)

        step = make_step(value_and_gradient, solver, rest, args, observe)
        return finish(*jax.lax.scan(step, (adapted, solver.init(adapted)), step_indices(num_steps)), rest)
