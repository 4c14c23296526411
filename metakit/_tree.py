"""Small operations on PyTrees of arrays."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from ._types import Flag, Scalar


def as_float_array(value: ArrayLike) -> Array:
    """A strongly typed floating-point array.

    `jnp.asarray(0.4)` is weakly typed, so a learner holding it would be traced again for every new value, and a
    Python float gets no gradient at all; every number of a learner passes through here instead.
    """
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating) or not hasattr(value, "dtype"):
        dtype = jnp.result_type(float)
    return jnp.asarray(value, dtype=jax.dtypes.canonicalize_dtype(dtype))


def tree_bytes(tree: Any) -> int:
    """Bytes held by the arrays of a tree (also of `jax.ShapeDtypeStruct` leaves)."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype") and hasattr(leaf, "shape")]
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    )


def any_deleted(tree: Any) -> bool:
    """Whether the memory of an array was given away, as `run_steps` does with the state that it is given."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)]
    return any(leaf.is_deleted() for leaf in arrays)


def is_key(leaf: Any) -> bool:
    """Whether an array holds random keys, which have no bytes to compare or to save as they are."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def inexact_leaves(tree: Any) -> list[Array]:
    """The floating-point arrays of a tree, in flattening order."""
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]


def widest_dtype(arrays: Sequence[Array]) -> jnp.dtype:
    """The dtype that holds the numbers of them all, also where JAX is told to promote nothing by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def global_norm(tree: Any) -> Scalar:
    """Euclidean norm over every floating-point leaf, computed in the widest dtype present."""
    leaves = inexact_leaves(tree)
    if not leaves:
        return jnp.zeros(())
    dtype = widest_dtype(leaves)
    squares = [jnp.sum(jnp.square(jnp.abs(leaf)).astype(dtype)) for leaf in leaves]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def all_finite(tree: Any) -> Flag:
    """Whether every floating-point leaf is free of NaN and infinities."""
    leaves = inexact_leaves(tree)
    if not leaves:
        return jnp.ones((), dtype=bool)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def unit_directions(tree: Any) -> Any:
    """A basis of a tree of arrays: the tree with a leading axis, whose entry i is 1 at the tree's i-th number."""
    leaves, structure = jax.tree.flatten(tree)
    total, offset, basis = sum(leaf.size for leaf in leaves), 0, []
    for leaf in leaves:
        block = jnp.eye(total, leaf.size, k=-offset, dtype=leaf.dtype)
        basis.append(block.reshape(total, *leaf.shape))
        offset += leaf.size
    return jax.tree.unflatten(structure, basis)


def from_vector(numbers: Array, like: Any) -> Any:
    """A vector laid out as a tree, in the order of `unit_directions`."""
    leaves, structure = jax.tree.flatten(like)
    parts, offset = [], 0
    for leaf in leaves:
        parts.append(numbers[offset : offset + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        offset += leaf.size
    return jax.tree.unflatten(structure, parts)
