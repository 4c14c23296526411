"""Values in a tree that are no arrays: nodes without leaves, so that JAX's own transformations take the tree."""

from typing import Any

import equinox as eqx
import jax
import numpy as np


class Static(eqx.Module):
    """A value as a part of a tree's structure: without leaves; called and compared as the value itself.

    `jax.grad` and `jax.jit` refuse a leaf that is no array. A static field would do for a function, but a module with
    parameters may stand in its place, whose leaves a static field would hide.
    """

    value: Any = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return self.value == (other.value if isinstance(other, Static) else other)

    def __hash__(self) -> int:
        return hash(self.value)


def as_node(value: Any) -> Any:
    """A plain function becomes a node without leaves; a module, whose leaves are its own, passes through.

    The converter of every field that takes either.
    """
    return Static(value) if callable(value) and jax.tree_util.all_leaves([value]) else value


def as_nodes(tree: Any) -> Any:
    """A foreign module with its functions, flags and other plain values as nodes without leaves.

    A Python float stays a leaf, for training to refuse it by name: who wrote it may have meant it to be trained. Those
    of Equinox's own layers, such as a dropout's rate, are meant to stay as they are.
    """

    def convert(node: Any) -> Any:
        if is_equinox_layer(node):
            return jax.tree.map(lambda leaf: leaf if _is_array(leaf) else Static(leaf), node)
        return node if _is_array(node) or isinstance(node, float) else Static(node)

    return jax.tree.map(convert, tree, is_leaf=is_equinox_layer)


def as_values(tree: Any) -> Any:
    """The module that `as_nodes` was given."""
    is_static = lambda node: isinstance(node, Static)  # noqa: E731
    return jax.tree.map(lambda node: node.value if is_static(node) else node, tree, is_leaf=is_static)


def is_equinox_layer(node: Any) -> bool:
    """Whether a node is one of Equinox's own layers."""
    return type(node).__module__.startswith("equinox.nn.")


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic) or eqx.is_array(leaf)
