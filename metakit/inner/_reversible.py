"""Run the loop backwards instead of storing it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from metakit._errors import raise_or_nan, require_number

from ._adjoint import AbstractAdjoint, Objective, Observe, Solution, make_step, step_indices
from ._fixed_point import DIVISOR, LARGEST, SMALLEST_NUMERATOR, snap
from ._loop import Inputs, Loop, inexact, prepare, refuse_gradient, value_of
from ._mixed_mode import mixed_value_and_gradient
from ._momentum import AbstractMomentum, Momentum, PerLayerPerStepMomentum
from ._solver import AbstractSolver, Step
from ._undo import Numbers, advance, begin, like, num_lanes, retreat

_SMALLEST = SMALLEST_NUMERATOR / DIVISOR


class Reversible(AbstractAdjoint):
    r"""The exact gradient of momentum SGD in next to no memory, by running the loop backwards.

    From $(\theta_{t+1}, v_{t+1})$ the step can be undone:

    $$\theta_t = \theta_{t+1} + \alpha_t v_{t+1}, \qquad v_t = \bigl(v_{t+1} - \kappa_t g_t\bigr) / \mu_t$$

    In floating point that fails, since each step forward loses $\log_2(1/\mu)$ bits of the velocity and each step back
    multiplies the error by $1/\mu$. So both are integers, multiples of $2^{-52}$, and the bits that a multiplication by
    $\mu$ would lose are kept aside. The backward pass then restores every state **bit for bit**, and differentiates one
    ordinary step from each.

    | | |
    |---|---|
    | time | about 5 evaluations of the inner gradient a step |
    | memory | one step's activations; 16 bytes and about $1.2\,K$ bits a parameter, 0.21 with `Reversible(0.89)` |
    | gradients | params, args, solver: all exact, of the loop as it is taken |

    The bits are those for which `smallest_decay` makes room, whatever the decays are.

    What is taken is the loop with each decay moved to the nearest multiple of $2^{-16}$ (0.9 becomes 0.899994), and
    with values rounded to $2^{-52}$ and products with a decay to about $2^{-44}$. Only first derivatives, in reverse
    mode, exist; a second raises.

    Needs 64-bit integers: `jax.config.update("jax_enable_x64", True)`; parameters may still be float32. Needs a solver
    whose step can be undone: `mk.inner.Momentum` without Nesterov, `mk.inner.PerLayerPerStepMomentum`, or your own
    `mk.inner.AbstractMomentum`, with every decay inside (0, 1).

    **What is checked.** A value beyond ±1024, a decay outside (0, 1) and more bits than there is room for make the
    result NaN, or raise where the numbers are known, outside compiled code. The backward pass compares where it
    arrives with where the loop began, to the last bit, and gives NaN (or raises) when they differ: an objective whose
    gradient is not reproducible, as with atomics on a GPU (`XLA_FLAGS=--xla_gpu_deterministic_ops=true` forbids them).

    **Arguments:**

    - `smallest_decay`: static; default 0.5. Room is made for decays that are at least this on average over every few
      dozen steps; 0.9 needs a sixth of the room.

    **Raises:** `TypeError` for a `smallest_decay` that is no number, `ValueError` for one outside (0, 1); in `solve`,
    without 64-bit integers, for a solver that cannot be undone, and for a decay outside (0, 1), or below 1/256, by its
    value.

    **Source:** Maclaurin, Duvenaud and Adams 2015, "Gradient-based Hyperparameter Optimization through Reversible
    Learning", algorithms 2 and 3, https://arxiv.org/abs/1502.03492. Their decay is the fraction above, here it is the
    nearest; their buffer is one long integer a parameter, here it is cut into words, so that each step costs the same;
    and their products are right to $2^{-36}$ where these are to $2^{-44}$ (see `_fixed_point.py`).

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def adapted(w):
    ...     return mk.inner.Reversible().solve(
    ...         lambda w, _, step: 0.5 * w**2, mk.inner.Momentum(0.5, 0.5), w, None, 2).params
    >>> with jax.enable_x64(True):
    ...     float(jax.grad(adapted)(jnp.ones(())))
    0.0
    """

    smallest_decay: float = eqx.field(static=True)

    def __init__(self, smallest_decay: float = 0.5):
        require_number("Reversible's smallest_decay", smallest_decay)
        if not 0 < smallest_decay < 1:
            raise ValueError(f"smallest_decay must lie strictly between 0 and 1, got {smallest_decay}.")
        self.smallest_decay = float(smallest_decay)

    def dropped(self, num_steps: int) -> frozenset[str]:
        del num_steps
        return frozenset()

    def num_lanes(self, num_steps: int) -> int:
        """64-bit words a parameter that `num_steps` steps take, beside the two of its position and velocity."""
        return num_lanes(num_steps, self.smallest_decay)

    def effective(self, solver: AbstractSolver, params: Any) -> AbstractMomentum:
        """The solver whose path is taken: its decays are multiples of 2^-16, their derivative 1.

        **Arguments:** `solver`; `params`, what it is for.

        **Returns:** a solver of the same type.

        **Raises:** `ValueError` for a solver that cannot be undone, or a known decay outside (0, 1).
        """
        if not isinstance(solver, AbstractMomentum):
            raise ValueError(
                f"Reversible cannot undo the steps of {type(solver).__name__}; it can those of {Momentum.__name__} "
                f"(without nesterov), {PerLayerPerStepMomentum.__name__} and other subclasses of "
                "mk.inner.AbstractMomentum. For any solver use mk.inner.MixedMode(checkpointed=True)."
            )
        adapted = inexact(params)
        jax.eval_shape(lambda: solver.coefficients(adapted, jnp.zeros((), jnp.int32)))  # for its errors
        return solver.with_decays(_snap_checked)

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
        if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                "Reversible needs integers of 64 bits, which JAX cuts to 32 by default: set "
                'jax.config.update("jax_enable_x64", True) at the start of the program. Parameters may stay float32.'
            )
        self.effective(solver, inputs.params)  # for its errors
        solution = _there(inputs, loop, self)
        return eqx.tree_at(lambda s: s.params, solution, eqx.combine(solution.params, inputs.rest))


def _snap_checked(decay: Array) -> Array:
    """The decay rounded, which must be one where it is known."""
    # By numpy, as inside a compiled program even the comparison of known numbers is not known.
    known = np.zeros(0) if isinstance(decay, Tracer) else np.ravel(np.asarray(decay))
    outside = known[~((known >= _SMALLEST) & (known < 1))]
    if outside.size:
        raise ValueError(
            f"Reversible needs every decay (momentum) strictly between 0 and 1 (from {_SMALLEST:.4g}), got "
            f"{outside[0]:g}. A decay of 0 forgets the velocity that the backward pass restores; without momentum use "
            "mk.inner.MixedMode(checkpointed=True). One that is learned stays inside as a sigmoid."
        )
    return snap(decay)


_SECOND = (
    "Reversible gives first derivatives only: the restored states are integers, which a second one would miss. Use "
    "mk.inner.MixedMode(checkpointed=True)."
)


@eqx.filter_custom_vjp
def _there(inputs: Inputs, loop: Loop, how: Reversible) -> Solution:
    return _forward(inputs, loop, how)[0]


@_there.def_fwd
def _there_forward(perturbed: Inputs, inputs: Inputs, loop: Loop, how: Reversible) -> Any:
    del perturbed
    return _forward(refuse_gradient(inputs, _SECOND), loop, how)


def _effective(inputs: Inputs, how: Reversible) -> Inputs:
    """With the decays whose path is taken, inside the rule: there a decay that is differentiated is a number, which an
    error can name. Rounding it has the derivative 1, so that its cotangent is the asked decay's as well."""
    return eqx.tree_at(lambda i: i.solver, inputs, how.effective(inputs.solver, inputs.params))


@_there.def_bwd
def _and_back(numbers: Numbers, cotangents: Solution, perturbed: Inputs, inputs: Inputs, loop: Loop, how: Reversible):
    inputs = _effective(refuse_gradient(inputs, _SECOND), how)
    moving, still = eqx.partition((inputs.args, inputs.solver), (perturbed.args, perturbed.solver))
    value = mixed_value_and_gradient(value_of(inputs, loop))
    observe = None if loop.observe is None else eqx.filter_checkpoint(loop.observe)
    along = (cotangents.losses, cotangents.observed)

    def step_back(carry: Any, at: Any) -> tuple[Any, None]:
        numbers, cotangent, of_moving = carry
        index, of_outputs = at
        numbers = retreat(numbers, inputs, loop, how.smallest_decay, index)

        def step(state: Any, moving: Any) -> Any:
            args, solver = eqx.combine(moving, still)
            state, outputs = make_step(value, solver, inputs.rest, args, observe)(state, index)
            return state, _where_given(of_outputs, outputs)

        _, pull = jax.vjp(step, (like(numbers.position, inputs), like(numbers.velocity, inputs)), moving)
        cotangent, more = pull((cotangent, of_outputs))
        return (numbers, cotangent, jax.tree.map(jnp.add, of_moving, more)), None

    def filled(cotangent: Any) -> Any:
        return jax.tree.map(lambda p, ct: jnp.zeros_like(p) if ct is None else ct, inputs.params, cotangent)

    cotangent = (filled(cotangents.params), filled(cotangents.state))
    zeros = jax.tree.map(jnp.zeros_like, moving)
    carry = (numbers, cotangent, zeros)
    (numbers, (of_params, _), of_moving), _ = jax.lax.scan(
        step_back, carry, (step_indices(loop.num_steps), along), reverse=True
    )
    begun = begin(inputs, loop, how.smallest_decay)
    arrived = [
        jnp.all(a == b)
        for name in ("position", "velocity", "lanes")
        for a, b in zip(jax.tree.leaves(getattr(numbers, name)), jax.tree.leaves(getattr(begun, name)), strict=True)
    ]
    # Numbers that had left their range may find the way back, but the loop that they describe is not the one asked for.
    bad = ~jnp.all(jnp.stack(arrived)) | numbers.out_of_range | numbers.out_of_bits
    of_params, of_moving = raise_or_nan(bad, (of_params, of_moving), _not_restored)
    of_args, of_solver = of_moving
    nothing = jax.tree.map(lambda _: None, inexact(inputs))
    return Inputs(of_params, nothing.rest, of_args, of_solver)


def _forward(inputs: Inputs, loop: Loop, how: Reversible) -> tuple[Solution, Numbers]:
    inputs = _effective(inputs, how)

    def step(numbers: Numbers, index: Step) -> tuple[Numbers, Any]:
        numbers, loss = advance(numbers, inputs, loop, how.smallest_decay, index)
        params = eqx.combine(like(numbers.position, inputs), inputs.rest)
        return numbers, (loss, None if loop.observe is None else loop.observe(params, inputs.args, index))

    numbers, (losses, observed) = jax.lax.scan(
        step, begin(inputs, loop, how.smallest_decay), step_indices(loop.num_steps)
    )
    ends = like(numbers.position, inputs), like(numbers.velocity, inputs)
    ends = raise_or_nan(numbers.out_of_range, ends, _out_of_range)
    params, velocity = raise_or_nan(numbers.out_of_bits, ends, lambda: _out_of_bits(how))
    return Solution(params, losses, velocity, observed), numbers


def _where_given(cotangents: Any, outputs: Any) -> Any:
    """The outputs that have a cotangent."""
    return jax.tree.map(
        lambda ct, out: None if ct is None else out, cotangents, outputs, is_leaf=lambda leaf: leaf is None
    )


def _out_of_bits(how: Reversible) -> ValueError:
    return ValueError(
        f"Reversible ran out of room for the bits of the velocity: decays are smaller than smallest_decay="
        f"{how.smallest_decay} allows for. Give Reversible a smaller smallest_decay (it costs memory), or the solver "
        "larger decays."
    )


def _out_of_range() -> ValueError:
    return ValueError(
        f"Reversible's fixed-point numbers hold values within ±{LARGEST:g} and decays strictly between 0 and 1 (from "
        f"{_SMALLEST:.4g}); a parameter, a velocity or a step left that, or is NaN. Does the loop diverge? Take "
        "a smaller rate, scale the loss, or use mk.inner.MixedMode(checkpointed=True)."
    )


def _not_restored() -> ValueError:
    return ValueError(
        "Reversible did not arrive where the loop began: the inner gradient is not reproducible bit for bit (atomic "
        "additions on a GPU: set XLA_FLAGS=--xla_gpu_deterministic_ops=true). No gradient is given."
    )
