"""Integers in place of floats, so that a multiplication can be undone to the last bit.

A number is an int64 of 2^-52; a decay is a fraction n / 2^16. Of a number q 2^16 + r the product is q n + j, where
j, one of n values, should be r n / 2^16. Maclaurin et al. push all of r onto a stack of the same coordinate, and
pop j from it. That is exact to undo, but j is then any of its n values: an error of up to 2^-36.

So both are cut into 256 blocks, b = r >> 8, of which block b of r goes to block b of j: the n_b values from floor(b
n / 256) to floor((b + 1) n / 256). Only the place inside the block, 8 bits, is pushed, and one of n_b popped. The
error is that of a place in a block, up to 2^-44, and the stack grows by about the log2(2^16 / n) bits that are
lost.

The stack of a coordinate is one integer that grows, I <- floor((I 2^8 + r mod 2^8) / n_b). Here it is cut into
lanes of 64 bits, each serving a number of consecutive steps known beforehand, so that a step costs the same however
long the loop is; a lane that would outgrow 2^56 is detected.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt

FRACTION_BITS = 52
DIVISOR_BITS = 16
DIVISOR = 1 << DIVISOR_BITS
_BLOCK_BITS = 8
# Below this some block would have no value left, n_b = 0.
SMALLEST_NUMERATOR = DIVISOR >> _BLOCK_BITS
# A lane below this can take one more push, I * 2^8 + r < 2^64.
_LANE_BITS = 64 - _BLOCK_BITS
# A number below 2^62 can take one more increment below 2^62 and stay an int64: 2^62 * 2^-52 = 1024.
LARGEST = float(1 << (62 - FRACTION_BITS))


def encode(value: Array) -> Int[Array, "..."]:
    """The nearest multiple of 2^-52. Odd in its argument, which undoing an addition relies on."""
    return jnp.rint(value.astype(jnp.float64) * 2.0**FRACTION_BITS).astype(jnp.int64)


def decode(number: Int[Array, "..."], dtype: jnp.dtype) -> Array:
    """The float that an integer stands for."""
    return (number.astype(jnp.float64) * 2.0**-FRACTION_BITS).astype(dtype)


def snap(decay: Array) -> Array:
    """The nearest fraction n / 2^16 between 1/256 and 1, NaN for what is not inside; the derivative stays 1."""
    inside = (decay >= SMALLEST_NUMERATOR / DIVISOR) & (decay < 1)
    nearest = jnp.clip(jnp.rint(decay * DIVISOR), SMALLEST_NUMERATOR, DIVISOR - 1) / DIVISOR
    shift = jax.lax.stop_gradient(jnp.where(inside, nearest, jnp.nan) - decay)
    return decay + shift


def numerator(decay: Array) -> UInt[Array, ""]:
    """n of a decay that went through `snap`."""
    whole = jnp.rint(decay.astype(jnp.float64) * DIVISOR)
    return jnp.clip(jnp.nan_to_num(whole, nan=1.0), SMALLEST_NUMERATOR, DIVISOR - 1).astype(jnp.uint64)


def multiply(
    number: Int[Array, "..."], lane: UInt[Array, "..."], n: UInt[Array, ""]
) -> tuple[Int[Array, "..."], UInt[Array, "..."]]:
    """`number * n / 2^16`, with what rounding would lose kept in the lane."""
    remainder = (number & (DIVISOR - 1)).astype(jnp.uint64)
    first, size = _block(remainder >> _BLOCK_BITS, n)
    lane = (lane << _BLOCK_BITS) | (remainder & ((1 << _BLOCK_BITS) - 1))
    place, lane = lane % size, lane // size
    return (number >> DIVISOR_BITS) * n.astype(jnp.int64) + (first + place).astype(jnp.int64), lane


def unmultiply(
    number: Int[Array, "..."], lane: UInt[Array, "..."], n: UInt[Array, ""]
) -> tuple[Int[Array, "..."], UInt[Array, "..."]]:
    """The inverse of `multiply`, exactly."""
    signed = n.astype(jnp.int64)
    # Floor division, as the remainder above is never negative.
    high = jnp.floor_divide(number, signed)
    j = (number - high * signed).astype(jnp.uint64)
    # The last block that begins at or before j: floor(b n / 256) <= j is b n < 256 (j + 1).
    block = (((j + 1) << _BLOCK_BITS) - 1) // n
    first, size = _block(block, n)
    lane = lane * size + (j - first)
    remainder = (block << _BLOCK_BITS) | (lane & ((1 << _BLOCK_BITS) - 1))
    return (high << DIVISOR_BITS) | remainder.astype(jnp.int64), lane >> _BLOCK_BITS


def _block(block: UInt[Array, "..."], n: UInt[Array, ""]) -> tuple[UInt[Array, "..."], UInt[Array, "..."]]:
    """The first value of a block of j, and how many it holds."""
    first = (block * n) >> _BLOCK_BITS
    return first, (((block + 1) * n) >> _BLOCK_BITS) - first


def full(lane: UInt[Array, "..."]) -> Bool[Array, ""]:
    """Whether some coordinate's lane cannot take another push."""
    return jnp.any(lane >> _LANE_BITS != 0)


def too_large(number: Int[Array, "..."]) -> Bool[Array, ""]:
    """Whether some coordinate could leave int64 at its next step."""
    return jnp.any(jnp.abs(number) >= 1 << 62)


def steps_a_lane(smallest_decay: float) -> int:
    """How many multiplications by at least `smallest_decay` fit into one lane.

    From I <- floor((I 2^8 + r) / n_b) follows I < (I + 1) / beta with beta = n_b / 2^8, so after t of them
    I < beta^-t / (1 - beta); the smallest block has floor(n / 2^8) values.
    """
    n = max(round(smallest_decay * DIVISOR) - 1, SMALLEST_NUMERATOR)
    beta = (n >> _BLOCK_BITS) / (1 << _BLOCK_BITS)
    return max(1, math.floor((_LANE_BITS + math.log2(1 - beta)) / -math.log2(beta)))
