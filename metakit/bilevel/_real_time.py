"""Hypergradients while the inner loop runs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from metakit._errors import raise_or_nan
from metakit._hyperparameter import held
from metakit._tree import from_vector, inexact_leaves, unit_directions
from metakit.inner import Solution, check_steps

from ._hypergradient import Hypergradient
from ._problem import Bilevel, check_hyper, check_problem, solver_of, start_of


class RealTime(eqx.Module):
    r"""An inner loop under way, with its derivatives.

    - `params`, `state`: the parameters $\theta_t$ and the solver's state.
    - `tangents`: $Z_t$, the derivatives of both with respect to every number of the hyperparameters, a leading axis
      `[N]` on each floating-point array.
    - `step`: $t$, how many steps have been taken.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     lambda w, target, data, step: (w - target) ** 2, lambda w, target, data: w**2, mk.inner.SGD(0.5), 10)
    >>> mk.start_real_time(problem, jnp.ones(()), jnp.zeros(())).tangents[0].shape
    (1,)
    """

    params: Any
    state: Any
    tangents: Any
    step: Int[Array, ""]


def start_real_time(problem: Bilevel, hyper: Any, params: Any = None) -> RealTime:
    """The state before the first step, for `real_time_hypergradient`.

    **Arguments:** `problem`, `hyper`, `params` as for `mk.hypergradient`; the problem's `num_steps` is not looked
    at, as each call says how many it takes.

    **Returns:** a `RealTime` with $Z_0$: zero, or the derivative of the problem's `init`.

    **Raises:** `ValueError` when `params` is missing or given beside an `init`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     lambda w, target, data, step: (w - target) ** 2, lambda w, target, data: w**2, mk.inner.SGD(0.5), 10)
    >>> int(mk.start_real_time(problem, jnp.ones(()), jnp.zeros(())).step)
    0
    """
    check_problem(problem)
    check_hyper(hyper)
    floating, others = eqx.partition(hyper, eqx.is_inexact_array)

    def begin(floating: Any) -> Any:
        whole = eqx.combine(floating, others)
        start = start_of(problem, whole, params)
        return start, solver_of(problem, whole).init(eqx.filter(start, eqx.is_inexact_array))

    def numbers(floating: Any) -> Any:
        return eqx.filter(begin(floating), eqx.is_inexact_array), None

    _, tangents, _ = _with_tangents(numbers, (floating,), (unit_directions(floating),))
    start, state = begin(floating)
    return RealTime(start, state, tangents, jnp.zeros((), jnp.int32))


def real_time_hypergradient(
    problem: Bilevel, hyper: Any, state: RealTime, data: Any = None, *, num_steps: int
) -> tuple[Hypergradient, RealTime]:
    r"""Take some inner steps, and give the hypergradient as of where they end.

    $$Z_{t+1} = A_t Z_t + B_t, \qquad \frac{dE(\theta_t)}{d\lambda} = \partial_\lambda E + \partial_\theta E\, Z_t$$

    Between calls the caller moves `hyper`, so that hyperparameters are tuned within one run of the inner loop:

    ```python
    state = mk.start_real_time(problem, hyper, params)
    for _ in range(problem.num_steps // 10):
        (value, gradient, _), state = mk.real_time_hypergradient(problem, hyper, state, data, num_steps=10)
        hyper = jax.tree.map(lambda h, g: h - 0.01 * g, hyper, gradient)
    ```

    | | |
    |---|---|
    | time | about $2N$ evaluations of the inner gradient a step, for $N$ numbers in `hyper` |
    | memory | $N$ states and $N$ times the activations of one step |
    | biased | once `hyper` has moved, since $Z$ remembers derivatives at its earlier values |

    As long as `hyper` has not moved, the result is that of `mk.hypergradient` over all steps so far.

    **Arguments:**

    - `problem`, `hyper`, `data`: as for `mk.hypergradient`.
    - `state`: from `start_real_time`, or the last call.
    - `num_steps`: inner steps of this call, static, at least 0.

    **Returns:** a `Hypergradient`, whose `solution` has the losses of these steps, and the new `RealTime`.

    **Raises:** `ValueError` for a negative `num_steps`, for a `hyper` of another size than the state was started with,
    or when the solver has no rates for so many steps; in a compiled program, which cannot count the steps of earlier
    calls, value and gradient are then NaN.

    **Source:** Franceschi et al. 2017, "Forward and Reverse Gradient-Based Hyperparameter Optimization", section 3.3
    (real-time hyperparameter optimisation), https://arxiv.org/abs/1703.01785.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     lambda w, target, data, step: 0.5 * (w - target) ** 2, lambda w, target, data: w, mk.inner.SGD(0.5), 10)
    >>> state = mk.start_real_time(problem, jnp.ones(()), jnp.zeros(()))
    >>> for _ in range(2):
    ...     (value, gradient, _), state = mk.real_time_hypergradient(problem, jnp.ones(()), state, num_steps=1)
    >>> float(value), float(gradient)
    (0.75, 0.75)
    """
    check_problem(problem)
    check_hyper(hyper)
    floating, others = eqx.partition(hyper, eqx.is_inexact_array)
    count, carried = sum(leaf.size for leaf in inexact_leaves(hyper)), len(inexact_leaves(state.tangents)[0])
    if count != carried:
        raise ValueError(
            f"hyper has {count} numbers, but the state carries derivatives by {carried}: it was started with another "
            "hyper. Call mk.start_real_time with this one."
        )
    check_steps(solver_of(problem, hyper), num_steps)
    data = held(data)
    numbers, rest = eqx.partition((state.params, state.state), eqx.is_inexact_array)

    def advance(floating: Any, numbers: Any) -> Any:
        whole = eqx.combine(floating, others)
        params, solver_state = eqx.combine(numbers, rest)
        adapted, frozen = eqx.partition(params, eqx.is_inexact_array)
        solver = solver_of(problem, whole)

        def loss_of(params: Any, step: Any) -> Any:
            return problem.inner(eqx.combine(params, frozen), whole, data, step)

        def step(carry: Any, index: Any) -> Any:
            loss, gradient = jax.value_and_grad(loss_of)(carry[0], index)
            return solver.update(gradient, carry[1], carry[0], index), loss

        indices = state.step + jnp.arange(num_steps, dtype=jnp.int32)
        (adapted, solver_state), losses = jax.lax.scan(step, (adapted, solver_state), indices)
        numbers, counts = eqx.partition((adapted, solver_state), eqx.is_inexact_array)
        value = problem.outer(eqx.combine(adapted, frozen), whole, data)
        return (numbers, value), (counts, losses)

    directions = (unit_directions(floating), state.tangents)
    (numbers, value), (tangents, slopes), (counts, losses) = _with_tangents(advance, (floating, numbers), directions)
    adapted, solver_state = eqx.combine(numbers, counts)
    params = eqx.combine(adapted, rest[0])
    gradient = from_vector(slopes, floating)

    limit = solver_of(problem, hyper).max_steps()
    if limit is not None:
        value, gradient = raise_or_nan(
            state.step + num_steps > limit, (value, gradient), lambda: _too_far(state, num_steps, limit)
        )
    solution = Solution(params, losses, solver_state)
    return Hypergradient(value, gradient, solution), RealTime(params, solver_state, tangents, state.step + num_steps)


def _with_tangents(function: Any, at: tuple[Any, ...], directions: tuple[Any, ...]) -> Any:
    """A function's result, its derivative along each of a batch of directions, and its auxiliary result."""

    def along(directions: Any) -> Any:
        return jax.jvp(function, at, directions, has_aux=True)

    # The function itself is not mapped, only its derivatives are.
    return eqx.filter_vmap(along, out_axes=(None, eqx.if_array(0), None))(directions)


def _too_far(state: RealTime, num_steps: int, limit: int) -> ValueError:
    return ValueError(
        f"{num_steps} more steps after {int(state.step)} were asked, but the solver holds rates for {limit} steps only."
    )
