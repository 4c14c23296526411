"""One step of momentum in integers, and the same step undone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ._fixed_point import LARGEST, decode, encode, full, multiply, numerator, steps_a_lane, too_large, unmultiply
from ._loop import Inputs, Loop, value_of
from ._solver import Step


class Numbers(eqx.Module):
    """The state of the loop in integers, and what has gone wrong so far."""

    position: Any
    velocity: Any
    lanes: Any  # [num_lanes, *shape] for every array
    out_of_bits: Bool[Array, ""]
    out_of_range: Bool[Array, ""]


def num_lanes(num_steps: int, smallest_decay: float) -> int:
    """64-bit words a parameter for the bits of `num_steps` steps."""
    return max(1, -(-num_steps // steps_a_lane(smallest_decay)))


def begin(inputs: Inputs, loop: Loop, smallest_decay: float) -> Numbers:
    """The state before the first step."""
    position = jax.tree.map(encode, inputs.params)
    velocity = jax.tree.map(encode, inputs.solver.init(inputs.params))
    lanes = jax.tree.map(
        lambda p: jnp.zeros((num_lanes(loop.num_steps, smallest_decay), *p.shape), jnp.uint64), inputs.params
    )
    large = [~jnp.all(jnp.abs(p) < LARGEST) for p in jax.tree.leaves(inputs.params)]
    return Numbers(position, velocity, lanes, jnp.zeros((), bool), jnp.any(jnp.stack(large)))


def advance(numbers: Numbers, inputs: Inputs, loop: Loop, smallest_decay: float, index: Step) -> tuple[Numbers, Array]:
    """One step, and the objective before it."""
    params = like(numbers.position, inputs)
    loss, gradient = _value_and_gradient(params, inputs, loop, index)
    rates, decays, gains = inputs.solver.coefficients(params, index)
    lane = _lane(index, smallest_decay)

    def one(x: Array, v: Array, lanes: Array, g: Array, rate: Array, decay: Array, gain: Array) -> Any:
        bits = full(lanes[lane])
        v, used = multiply(v, lanes[lane], numerator(decay))
        push = gain * g
        v = v + encode(push)
        move = rate * decode(v, rate.dtype)
        x = x - encode(move)
        # NaN compares false, so that it counts as large.
        small = jnp.all(jnp.abs(push) < LARGEST) & jnp.all(jnp.abs(move) < LARGEST) & jnp.isfinite(decay)
        return x, v, lanes.at[lane].set(used), bits, ~small | too_large(v) | too_large(x)

    new = _transposed(one, numbers.position, numbers.velocity, numbers.lanes, gradient, rates, decays, gains)
    position, velocity, lanes, bits, size = new
    bits, size = (jnp.any(jnp.stack(jax.tree.leaves(flags))) for flags in (bits, size))
    return Numbers(position, velocity, lanes, numbers.out_of_bits | bits, numbers.out_of_range | size), loss


def retreat(numbers: Numbers, inputs: Inputs, loop: Loop, smallest_decay: float, index: Step) -> Numbers:
    """The exact inverse of `advance`."""
    rates, decays, gains = inputs.solver.coefficients(inputs.params, index)
    lane = _lane(index, smallest_decay)
    position = jax.tree.map(
        lambda x, v, rate: x + encode(rate * decode(v, rate.dtype)), numbers.position, numbers.velocity, rates
    )
    _, gradient = _value_and_gradient(like(position, inputs), inputs, loop, index)

    def one(v: Array, lanes: Array, g: Array, decay: Array, gain: Array) -> Any:
        v, used = unmultiply(v - encode(gain * g), lanes[lane], numerator(decay))
        return v, lanes.at[lane].set(used)

    velocity, lanes = _transposed(one, numbers.velocity, numbers.lanes, gradient, decays, gains)
    return Numbers(position, velocity, lanes, numbers.out_of_bits, numbers.out_of_range)


def _value_and_gradient(params: Any, inputs: Inputs, loop: Loop, index: Step) -> tuple[Array, Any]:
    """The same bits in both directions.

    XLA for CPUs drops optimisation barriers before it fuses, and what a gradient is fused with decides where it rounds
    (a multiplication and an addition become one instruction). A branch is compiled by itself: that index >= 0 always
    holds is not known to the compiler.
    """

    def evaluate(params: Any) -> tuple[Array, Any]:
        return jax.value_and_grad(value_of(inputs, loop))(params, inputs.args, index)

    def never(params: Any) -> tuple[Array, Any]:
        loss, gradient = jax.eval_shape(evaluate, params)
        return jnp.full(loss.shape, jnp.nan, loss.dtype), jax.tree.map(
            lambda g: jnp.full(g.shape, jnp.nan, g.dtype), gradient
        )

    return jax.lax.optimization_barrier(jax.lax.cond(index >= 0, evaluate, never, jax.lax.optimization_barrier(params)))


def _lane(index: Step, smallest_decay: float) -> Array:
    return index // steps_a_lane(smallest_decay)


def like(numbers: Any, inputs: Inputs) -> Any:
    """The floats that integers stand for, in the dtypes of the parameters."""
    return jax.tree.map(lambda number, p: decode(number, p.dtype), numbers, inputs.params)


def _transposed(function: Any, first: Any, *rest: Any) -> tuple[Any, ...]:
    """`jax.tree.map` of a function with several results: a tuple of trees."""
    leaves, structure = jax.tree.flatten(first)
    results = [function(*row) for row in zip(leaves, *map(jax.tree.leaves, rest), strict=True)]
    return tuple(jax.tree.unflatten(structure, column) for column in zip(*results, strict=True))
