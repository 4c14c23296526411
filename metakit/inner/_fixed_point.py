"""Integers in place of floats, so that a multiplication can be undone to the last bit.

A number is an int64 of 2^-52; a decay is a fraction n / 2^16. Multiplying by it loses the remainder of a division by
2^16, which is pushed onto a stack of the same coordinate, and gains a free choice of n low values, which is popped from
it: the information that leaves the number is kept, and little more than the log2(2^16 / n) bits that it is.

The stack of a coordinate is one integer that grows, I <- I M + r. Here it is cut into lanes of 64 bits, each serving a
number of consecutive steps known beforehand, so that a step costs the same however long the loop is; a lane that would
outgrow 2^48 is detected.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt

FRACTION_BITS = 52
DIVISOR_BITS = 16
DIVISOR = 1 << DIVISOR_BITS
# A lane below this can take one more push, I * 2^16 + r < 2^64.
_LANE_BITS = 64 - DIVISOR_BITS
# A number below 2^62 can take one more increment below 2^62 and stay an int64: 2^62 * 2^-52 = 1024.
LARGEST = float(1 << (62 - FRACTION_BITS))


def encode(value: Array) -> Int[Array, "..."]:
    """The nearest multiple of 2^-52. Odd in its argument, which undoing an addition relies on."""
    return jnp.rint(value.astype(jnp.float64) * 2.0**FRACTION_BITS).astype(jnp.int64)


def decode(number: Int[Array, "..."], dtype: jnp.dtype) -> Array:
    """The float that an integer stands for."""
    return (number.astype(jnp.float64) * 2.0**-FRACTION_BITS).astype(dtype)


def snap(decay: Array) -> Array:
    """The nearest fraction n / 2^16 strictly between 0 and 1, NaN for what is not; the derivative stays 1."""
    inside = (decay > 0) & (decay < 1)
    nearest = jnp.clip(jnp.rint(decay * DIVISOR), 1, DIVISOR - 1) / DIVISOR
    shift = jax.lax.stop_gradient(jnp.where(inside, nearest, jnp.nan) - decay)
    return decay + shift


def numerator(decay: Array) -> UInt[Array, ""]:
    """n of a decay that went through `snap`."""
    whole = jnp.rint(decay.astype(jnp.float64) * DIVISOR)
    return jnp.clip(jnp.nan_to_num(whole, nan=1.0), 1, DIVISOR - 1).astype(jnp.uint64)


def multiply(
    number: Int[Array, "..."], lane: UInt[Array, "..."], n: UInt[Array, ""]
) -> tuple[Int[Array, "..."], UInt[Array, "..."]]:
    """`number * n / 2^16`, with what rounding would lose kept in the lane."""
    remainder = (number & (DIVISOR - 1)).astype(jnp.uint64)
    lane = (lane << DIVISOR_BITS) | remainder
    low, lane = lane % n, lane // n
    return (number >> DIVISOR_BITS) * n.astype(jnp.int64) + low.astype(jnp.int64), lane


def unmultiply(
    number: Int[Array, "..."], lane: UInt[Array, "..."], n: UInt[Array, ""]
) -> tuple[Int[Array, "..."], UInt[Array, "..."]]:
    """The inverse of `multiply`, exactly."""
    signed = n.astype(jnp.int64)
    # Floor division, as the remainder above is never negative.
    high = jnp.floor_divide(number, signed)
    lane = lane * n + (number - high * signed).astype(jnp.uint64)
    remainder = (lane & (DIVISOR - 1)).astype(jnp.int64)
    return (high << DIVISOR_BITS) | remainder, lane >> DIVISOR_BITS


def full(lane: UInt[Array, "..."]) -> Bool[Array, ""]:
    """Whether some coordinate's lane cannot take another push."""
    return jnp.any(lane >> _LANE_BITS != 0)


def too_large(number: Int[Array, "..."]) -> Bool[Array, ""]:
    """Whether some coordinate could leave int64 at its next step."""
    return jnp.any(jnp.abs(number) >= 1 << 62)


def steps_a_lane(smallest_decay: float) -> int:
    """How many multiplications by at least `smallest_decay` fit into one lane.

    From I <- floor((I 2^16 + r) / n) follows I < (I + 1) / beta, so after t of them I < beta^-t / (1 - beta).
    """
    decay = min(max(smallest_decay, 1.5 / DIVISOR), 1 - 1.5 / DIVISOR) - 0.5 / DIVISOR
    return max(1, math.floor((_LANE_BITS + math.log2(1 - decay)) / -math.log2(decay)))
