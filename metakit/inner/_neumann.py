"""A truncated Neumann series as a lineax solver."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx

from metakit._errors import require_number, require_whole
from metakit._tree import global_norm


class Neumann(lx.AbstractLinearSolver):
    r"""An approximate inverse by a truncated Neumann series, for `Implicit(linear_solver=...)`.

    $$A^{-1} v \approx \rho \sum_{j=0}^{J} (I - \rho A)^j v$$

    It equals the unroll of $J + 1$ steps of gradient descent at rate $\rho$ that all stand at the minimum. It needs no
    inner products, one product with $A$ a term, and converges where $\lVert I - \rho A \rVert < 1$: $\rho$ below 2
    over the largest eigenvalue of the Hessian. A rate of gradient descent that converges qualifies.

    **Arguments:**

    - `num_terms`: $J \ge 0$, products with $A$; static. Each shrinks the error by $\lVert I - \rho A\rVert$.
    - `rate`: $\rho > 0$, a Python float; static.

    **Raises:** `ValueError` for `num_terms` below 0 or a `rate` that is not positive; `TypeError` for what is no
    number.

    **Source:** Lorraine, Vicol and Duvenaud 2020, "Optimizing Millions of Hyperparameters by Implicit
    Differentiation", section 3.2 and algorithm 3, https://arxiv.org/abs/1911.02590.

    >>> import jax.numpy as jnp, lineax as lx, metakit as mk
    >>> operator = lx.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 2.0])))
    >>> lx.linear_solve(operator, jnp.ones(2), mk.inner.Neumann(50, 0.5)).value.round(6).tolist()
    [1.0, 0.5]
    """

    num_terms: int = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __init__(self, num_terms: int, rate: float):
        require_whole("Neumann's num_terms", num_terms)
        require_number("Neumann's rate", rate)
        if num_terms < 0 or not rate > 0:
            raise ValueError(
                f"Neumann needs num_terms >= 0 and a rate above 0, got num_terms={num_terms} and rate={rate}. The "
                "inner loop's own rate is a good one."
            )
        self.num_terms = num_terms
        self.rate = float(rate)

    def init(self, operator: Any, options: dict[str, Any]) -> Any:
        del options
        return lx.linearise(operator)

    def compute(self, state: Any, vector: Any, options: dict[str, Any]) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        del options

        def scaled(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.asarray(self.rate, leaf.dtype) * leaf, tree)

        def term(carry: Any, _: None) -> Any:
            power, total = carry
            power = jax.tree.map(jnp.subtract, power, scaled(state.mv(power)))
            return (power, jax.tree.map(jnp.add, total, power)), None

        (last, total), _ = jax.lax.scan(term, (vector, vector), None, length=self.num_terms)
        # A series that converges has terms that do not grow.
        grew = ~(global_norm(last) <= global_norm(vector))
        return scaled(total), lx.RESULTS.where(grew, lx.RESULTS.breakdown, lx.RESULTS.successful), {}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return state.transpose(), options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return lx.conj(state), options

    def assume_full_rank(self) -> bool:
        return True
