"""The numbers of a task distribution, checked where it is made."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from metakit._tree import as_float_array


def as_numbers(
    value: Any, name: str, shape: tuple[int, ...], holds: Callable[[np.ndarray], Any], expected: str
) -> Array:
    """A floating-point array leaf of this shape, finite, for which `holds`; `expected` says what that asks.

    Values that JAX is tracing are taken on trust, so that a distribution can be built inside a
    transformation.
    """
    several = isinstance(value, list | tuple)
    array = jnp.asarray(value, jnp.result_type(float)) if several else as_float_array(value)
    if array.shape != shape:
        raise ValueError(f"{name} must be {expected}, got {value!r} of shape {list(array.shape)}.")
    if not isinstance(array, Tracer):
        concrete = np.asarray(array)
        if not (np.isfinite(concrete).all() and holds(concrete)):
            raise ValueError(f"{name} must be {expected}, got {concrete.tolist()}.")
    return array


def as_range(value: Any, name: str) -> Float[Array, "2"]:
    """`(low, high)` as one array leaf; equal ends are the range of a single number."""
    expected = "a range (low, high) of finite numbers with low <= high"
    return as_numbers(value, name, (2,), lambda ends: ends[0] <= ends[1], expected)


def check_counts(shot: int, queries: int) -> None:
    """A task needs at least one example on either side."""
    for name, count in (("shot", shot), ("queries", queries)):
        if count < 1:
            raise ValueError(f"{name} is a number of examples and must be at least 1, got {count}.")


def uniform(key: Any, ends: Float[Array, "2"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform numbers in a range, in the range's own dtype."""
    unit = jax.random.uniform(key, shape, ends.dtype)
    return ends[0] + (ends[1] - ends[0]) * unit


def moments(ends: Float[Array, "2"], highest: int) -> list[Array]:
    r"""$E[u^k]$ for $k = 0, \dots,$ `highest` and $u$ uniform in the range.

    $(h^{k+1} - l^{k+1}) / ((k + 1)(h - l)) = \sum_i h^i l^{k-i} / (k + 1)$, which has no division by zero
    when the ends are equal.
    """
    low, high = ends[0], ends[1]
    powers = [(jnp.ones_like(low), jnp.ones_like(high))]
    for _ in range(highest):
        powers.append((powers[-1][0] * low, powers[-1][1] * high))
    terms = [[powers[i][1] * powers[k - i][0] for i in range(k + 1)] for k in range(highest + 1)]
    return [jnp.stack(term).mean() for term in terms]
