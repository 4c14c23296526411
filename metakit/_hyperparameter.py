"""Numbers of a learner that are not weights, and which of them training may move."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, Float

from ._tree import as_float_array


class Hyperparameter(eqx.Module):
    """A number (or array) of a learner together with whether meta-training moves it.

    The value is always an array leaf, so changing it never compiles again and `eqx.filter_grad` always gives its
    gradient. `learned` only tells the *trainer* whether to apply that gradient: a published inner rate of 0.4 stays
    0.4 unless you ask for Meta-SGD.

    **Arguments:**

    - `value`: a number or array of any shape; stored in the default floating-point dtype if it has none.
    - `learned`: whether `mk.trainable` marks it; default `False`.

    >>> import metakit as mk
    >>> mk.fixed(0.4).learned, mk.learned(0.4).learned
    (False, True)
    """

    value: Float[Array, "*shape"]
    learned: bool = eqx.field(static=True)

    def __init__(self, value: ArrayLike, learned: bool = False):
        self.value = as_float_array(value)
        self.learned = learned


class Constant(eqx.Module):
    """Base of modules whose arrays are measured, not learnt (frozen batch statistics): training leaves them alone."""


def fixed(value: ArrayLike) -> Hyperparameter:
    """A hyperparameter that training leaves alone.

    **Arguments:** `value`, a number or an array of any shape.

    **Returns:** a `Hyperparameter` with `learned=False`.

    >>> fixed(0.5).value.shape
    ()
    """
    return Hyperparameter(value, learned=False)


def learned(value: ArrayLike) -> Hyperparameter:
    """A hyperparameter that training moves along with the weights, starting at `value`.

    **Arguments:** `value`, a number or an array of any shape.

    **Returns:** a `Hyperparameter` with `learned=True`.

    >>> learned(0.5).learned
    True
    """
    return Hyperparameter(value, learned=True)


def as_hyperparameter(value: "Hyperparameter | ArrayLike") -> Hyperparameter:
    """A plain number becomes a fixed hyperparameter; a `Hyperparameter` passes through."""
    return value if isinstance(value, Hyperparameter) else fixed(value)


def _decides(node: Any) -> bool:
    return isinstance(node, Hyperparameter | Constant)


def trainable(learner: Any) -> Any:
    """Which leaves of a learner meta-training moves.

    **Arguments:**

    - `learner`: any PyTree, usually an Equinox module.

    **Returns:** a tree of the learner's structure holding `True` on every floating-point array, except those inside a
    `Hyperparameter` that is not learned or in frozen batch statistics, and `False` elsewhere. It is a filter
    for `eqx.partition`.

    >>> import jax.numpy as jnp
    >>> trainable({"weight": jnp.ones(2), "rate": fixed(0.1)})["weight"]
    True
    """

    def mark(node: Any) -> Any:
        moves = not _decides(node) or (isinstance(node, Hyperparameter) and node.learned)
        return jax.tree.map(lambda leaf: moves and eqx.is_inexact_array(leaf), node)

    return jax.tree.map(mark, learner, is_leaf=_decides)
