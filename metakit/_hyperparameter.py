"""Numbers of a learner that are not weights, and which of them training may move."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._tree import as_float_array
from ._wording import describe


class Hyperparameter(eqx.Module):
    """A number (or array) of a learner together with whether meta-training moves it.

    The value is always an array leaf, so changing it never compiles again and `eqx.filter_grad` always gives its
    gradient. `learned` only tells the *trainer* whether to apply that gradient: a published inner rate of 0.4 stays
    0.4 unless you ask for Meta-SGD.

    **Arguments:**

    - `value`: a number or array of any shape; stored in the default floating-point dtype if it has none.
    - `learned`: whether `mk.trainable` marks it; default `False`.

    **Raises:** `TypeError` for a value that is no number or array, such as a network.

    >>> import metakit as mk
    >>> mk.fixed(0.4).learned, mk.learned(0.4).learned
    (False, True)
    """

    value: Float[Array, "*shape"]
    learned: bool = eqx.field(static=True)

    def __init__(self, value: ArrayLike, learned: bool = False):
        if not eqx.is_array_like(value):
            raise TypeError(
                f"a hyperparameter is a number or an array of numbers, got {describe(value)}. Put each number of a "
                "module into mk.fixed or mk.learned; training leaves a whole module alone by "
                "mk.train.init(..., trainable=mk.inner.select.all_but(lambda learner: learner.backbone))."
            )
        self.value = as_float_array(value)
        self.learned = learned


class Constant(eqx.Module):
    """Base of modules whose arrays are measured, not learnt (frozen batch statistics): training leaves them alone."""


def fixed(value: ArrayLike) -> Hyperparameter:
    """A hyperparameter that training leaves alone.

    **Arguments:** `value`, a number or an array of any shape.

    **Returns:** a `Hyperparameter` with `learned=False`.

    **Raises:** `TypeError` for a `value` that is neither, such as a network.

    >>> fixed(0.5).value.shape
    ()
    """
    return Hyperparameter(value, learned=False)


def learned(value: ArrayLike) -> Hyperparameter:
    """A hyperparameter that training moves along with the weights, starting at `value`.

    **Arguments:** `value`, a number or an array of any shape.

    **Returns:** a `Hyperparameter` with `learned=True`.

    **Raises:** `TypeError` for a `value` that is neither, such as a network.

    >>> learned(0.5).learned
    True
    """
    return Hyperparameter(value, learned=True)


def as_hyperparameter(value: "Hyperparameter | ArrayLike") -> Hyperparameter:
    """A plain number becomes a fixed hyperparameter; a `Hyperparameter` passes through."""
    return value if isinstance(value, Hyperparameter) else fixed(value)


def held(tree: Any) -> Any:
    r"""The same numbers, which take part in everything and get no gradient.

    $$\operatorname{held}(\theta) = \theta, \qquad \frac{d \operatorname{held}(\theta)}{d \theta} = 0$$

    `mk.fixed` says what *training* moves; this says what a *gradient* reaches. `mk.inner.Implicit` refuses to be
    differentiated with respect to where the loop started and how fast it went: hold what is only a means to the
    minimum, such as `mk.held(solver)`.

    **Arguments:** `tree`, any PyTree.

    **Returns:** the tree, with `jax.lax.stop_gradient` on every floating-point array.

    >>> import jax, jax.numpy as jnp
    >>> float(jax.grad(lambda w: w * held(w))(jnp.asarray(3.0)))
    3.0
    """
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


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


def marks(trainable: Callable[[Any], Any] | Any, learner: Any) -> Any:
    """What `trainable=` says of each leaf: a tree of booleans, or a function that makes one of the learner."""
    structure = jax.tree.structure(learner)
    # A tree of booleans of a callable module is callable itself.
    is_tree = jax.tree.structure(trainable) == structure and all(map(_is_flag, jax.tree.leaves(trainable)))
    mask = trainable(learner) if callable(trainable) and not is_tree else trainable
    if jax.tree.structure(mask) != structure:
        raise ValueError(
            "trainable must be a tree of booleans with the learner's structure, or a function that makes one of the "
            f"learner, such as mk.trainable; got {jax.tree.structure(mask)} for {structure}. Start from "
            "mk.trainable(learner) and change leaves with eqx.tree_at."
        )
    return mask


def _is_flag(leaf: Any) -> bool:
    return isinstance(leaf, bool | np.bool_) or (eqx.is_array(leaf) and leaf.dtype == bool)
