"""How weights start: functions `(key, shape, fan_in, fan_out) -> array` in the default float dtype."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metakit._types import PRNGKey


class Initialiser(Protocol):
    def __call__(self, key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array: ...


def _dtype() -> jnp.dtype:
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def xavier_uniform(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Uniform with variance 2 / (fan_in + fan_out): what MAML's published code starts its networks from.

    **Arguments:** `key`; `shape` of the weights; `fan_in` and `fan_out`, connections to and from a unit.

    **Returns:** an array of the default floating-point dtype.

    >>> import jax, metakit as mk
    >>> mk.nn.xavier_uniform(jax.random.key(0), (3, 2), 3, 2).shape
    (3, 2)
    """
    limit = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, _dtype(), -limit, limit)


def he_normal(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Normal with variance 2 / fan_in: keeps the scale of activations through ReLUs.

    **Arguments:** `key`; `shape` of the weights; `fan_in` and `fan_out`, connections to and from a unit.

    **Returns:** an array of the default floating-point dtype.

    >>> import jax, metakit as mk
    >>> mk.nn.he_normal(jax.random.key(0), (3, 2), 3, 2).shape
    (3, 2)
    """
    del fan_out
    return jax.random.normal(key, shape, _dtype()) * jnp.asarray(math.sqrt(2 / fan_in), _dtype())


def unit_normal(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Normal with variance 1: the head of MAML's published Omniglot network.

    **Arguments:** `key`; `shape` of the weights; `fan_in` and `fan_out`, connections to and from a unit.

    **Returns:** an array of the default floating-point dtype.

    >>> import jax, metakit as mk
    >>> mk.nn.unit_normal(jax.random.key(0), (3, 2), 3, 2).shape
    (3, 2)
    """
    del fan_in, fan_out
    return jax.random.normal(key, shape, _dtype())


def small_truncated_normal(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Truncated normal with standard deviation 0.01: MAML's published fully connected networks.

    **Arguments:** `key`; `shape` of the weights; `fan_in` and `fan_out`, connections to and from a unit.

    **Returns:** an array of the default floating-point dtype.

    >>> import jax, metakit as mk
    >>> mk.nn.small_truncated_normal(jax.random.key(0), (3, 2), 3, 2).shape
    (3, 2)
    """
    del fan_in, fan_out
    return 0.01 * jax.random.truncated_normal(key, -2, 2, shape, _dtype())


def zeros(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Nothing but zeros.

    **Arguments:** `key`; `shape` of the weights; `fan_in` and `fan_out`, connections to and from a unit.

    **Returns:** an array of the default floating-point dtype.

    >>> import jax, metakit as mk
    >>> mk.nn.zeros(jax.random.key(0), (3, 2), 3, 2).shape
    (3, 2)
    """
    del key, fan_in, fan_out
    return jnp.zeros(shape, _dtype())
