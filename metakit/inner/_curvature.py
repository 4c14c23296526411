"""A learned preconditioner of inner gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from metakit._hyperparameter import Hyperparameter, as_hyperparameter, learned

from ._rates import is_hyperparameter
from ._solver import AbstractSolver, Step, as_scalar, moved_by


class MetaCurvature(AbstractSolver):
    r"""Gradient descent whose gradients pass through learned matrices, one for every axis of every array.

    $$\theta_{t+1} = \theta_t - \alpha\, M(g_t), \qquad M(g) = g \times_1 M_1 \times_2 M_2 \times_3 \cdots$$

    where $(g \times_1 M_1)_{i\cdots} = \sum_j (M_1)_{ij}\, g_{j\cdots}$ and so on for each axis: for a matrix of
    weights, $M_1\, g\, M_2^\top$. A Kronecker product of small matrices, it mixes gradients within an array at the
    price of its sides squared, where a full preconditioner would take its size squared. Build it with `.like`, which
    starts at the identity, plain gradient descent; the matrices are learned.

    **Arguments:**

    - `rate`: $\alpha$, a number or a `Hyperparameter`.
    - `matrices`: a dictionary from the path of a parameter (`jax.tree_util.keystr`) to a tuple of one `Hyperparameter`
      or array `[side, side]` for every axis. It may hold more than is adapted. Plain arrays become fixed.

    **Raises:** at the first step, `ValueError` for a parameter without matrices, or with ones of another side.

    **Source:** Park and Oliva 2019, "Meta-Curvature", section 3.2 (MC1), https://arxiv.org/abs/1902.03356. They take
    the positions of a kernel as one axis; here each axis of an array, that of a bias too, has a matrix of its own.

    >>> import jax.numpy as jnp, metakit as mk
    >>> solver = mk.inner.MetaCurvature.like({"w": jnp.ones((3, 2))}, 0.1)
    >>> [matrix.value.shape for matrix in solver.matrices["['w']"]]
    [(3, 3), (2, 2)]
    """

    rate: Hyperparameter
    matrices: dict[str, tuple[Hyperparameter, ...]]

    def __init__(self, rate: Hyperparameter | ArrayLike, matrices: dict[str, Any]):
        self.rate = as_scalar(rate, "MetaCurvature", "rate")
        self.matrices = jax.tree.map(as_hyperparameter, matrices, is_leaf=is_hyperparameter)

    @staticmethod
    def like(params: Any, rate: Hyperparameter | ArrayLike) -> "MetaCurvature":
        """Learned matrices that all start at the identity.

        **Arguments:**

        - `params`: a model, or any PyTree; every floating-point array in it gets a matrix for each axis.
        - `rate`: one number or `Hyperparameter`.

        **Returns:** a `MetaCurvature`.

        **Raises:** `ValueError` when `params` holds no floating-point array.
        """
        leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(params, eqx.is_inexact_array))
        if not leaves:
            raise ValueError(f"params holds no floating-point array to precondition, got {type(params).__name__}.")

        def identities(leaf: Array) -> tuple[Hyperparameter, ...]:
            return tuple(learned(jnp.eye(side, dtype=leaf.dtype)) for side in leaf.shape)

        return MetaCurvature(rate, {jax.tree_util.keystr(path): identities(leaf) for path, leaf in leaves})

    def init(self, params: Any) -> None:
        del params

    def update(self, grads: Any, state: None, params: Any, step: Step) -> tuple[Any, None]:
        del state, step
        return moved_by(params, jax.tree_util.tree_map_with_path(self._precondition, grads), self.rate.value), None

    def max_steps(self) -> None:
        return None

    def _precondition(self, path: Any, gradient: Array) -> Array:
        name = jax.tree_util.keystr(path)
        matrices = self.matrices.get(name)
        sides = None if matrices is None else [matrix.value.shape for matrix in matrices]
        if matrices is None or sides != [(side, side) for side in gradient.shape]:
            raise ValueError(
                f"MetaCurvature needs a square matrix for each axis of the parameter {name} of shape "
                f"{list(gradient.shape)}, got {'none' if sides is None else sides}. Build it from the model that is "
                "adapted, MetaCurvature.like(model, rate), after any change to the model's structure."
            )
        for axis, matrix in enumerate(matrices):
            product = jnp.tensordot(matrix.value.astype(gradient.dtype), gradient, axes=(1, axis))
            gradient = jnp.moveaxis(product, 0, axis)
        return gradient
