"""Solvers that hold a rate for every parameter, or for every layer and step."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from metakit._hyperparameter import Hyperparameter, as_hyperparameter, learned
from metakit._tree import as_float_array

from ._solver import AbstractSolver, Step


class PerParameterSGD(AbstractSolver):
    r"""Gradient descent with one rate for every single parameter: Meta-SGD.

    $$\theta_{t+1} = \theta_t - \alpha \circ g_t, \qquad \alpha \text{ of the shape of } \theta$$

    Build it with `.like`; the rates are learned.

    **Arguments:**

    - `rates`: a PyTree with the paths of the parameters' leaves, each a `Hyperparameter` or an array of the
      parameter's shape. It may have more leaves than are adapted. Plain arrays become fixed.

    **Raises:** at the first step, `ValueError` for a parameter without a rate, or a rate of another shape.

    **Source:** Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning",
    https://arxiv.org/abs/1707.09835. The paper draws the initial rates at random; here they all start at one value.

    >>> import jax.numpy as jnp, metakit as mk
    >>> solver = mk.inner.PerParameterSGD.like({"w": jnp.ones(3)}, 0.1)
    >>> solver.rates["w"].value.shape, solver.rates["w"].learned
    ((3,), True)
    """

    rates: Any

    def __init__(self, rates: Any):
        self.rates = jax.tree.map(as_hyperparameter, rates, is_leaf=is_hyperparameter)

    @staticmethod
    def like(params: Any, rate: ArrayLike) -> "PerParameterSGD":
        """Learned rates that all start at `rate`.

        **Arguments:**

        - `params`: a model, or any PyTree; every floating-point array in it gets rates of its shape and dtype.
        - `rate`: one number.

        **Returns:** a `PerParameterSGD`.
        """
        return PerParameterSGD(per_leaf(params, rate))

    def init(self, params: Any) -> None:
        del params

    def update(self, grads: Any, state: None, params: Any, step: Step) -> tuple[Any, None]:
        del state, step

        def move(p: Array, g: Array, rate: Array, name: str) -> Array:
            if rate.shape != p.shape:
                raise ValueError(
                    f"PerParameterSGD's rates for {name} have shape {list(rate.shape)}, but the parameter has "
                    f"{list(p.shape)}. Build the solver with PerParameterSGD.like(model, rate) from this model."
                )
            return p - rate.astype(p.dtype) * g

        return with_rates(move, params, grads, self.rates, "PerParameterSGD"), None

    def max_steps(self) -> None:
        return None


class PerLayerPerStepSGD(AbstractSolver):
    r"""Gradient descent with one rate for every array of parameters and every step: MAML++'s LSLR.

    $$\theta^{(l)}_{t+1} = \theta^{(l)}_t - \alpha^{(l)}_t\, g^{(l)}_t$$

    Build it with `.like`; the rates are learned. It takes at most as many steps as it has rates, at evaluation too.

    **Arguments:**

    - `rates`: a PyTree with the paths of the parameters' leaves, each a `Hyperparameter` or an array `[num_steps]`. It
      may have more leaves than are adapted. Plain arrays become fixed.

    **Raises:** `ValueError` when the rates are not all of one shape `[num_steps]`; at the first step, when a parameter
    has no rate; and when more steps are asked for than there are rates.

    **Source:** Antoniou, Edwards and Storkey 2019, "How to train your MAML", section 4, "Learning Per-Layer Per-Step
    Learning Rates", https://arxiv.org/abs/1810.09502. As in the released code, a layer means one array, so a weight
    and its bias have rates of their own.

    >>> import jax.numpy as jnp, metakit as mk
    >>> solver = mk.inner.PerLayerPerStepSGD.like({"w": jnp.ones(3)}, 0.1, num_steps=5)
    >>> solver.rates["w"].value.shape, solver.max_steps()
    ((5,), 5)
    """

    rates: Any

    def __init__(self, rates: Any):
        self.rates = check_per_step({"rates": rates}, "PerLayerPerStepSGD")["rates"]

    @staticmethod
    def like(params: Any, rate: ArrayLike, num_steps: int) -> "PerLayerPerStepSGD":
        """Learned rates that all start at `rate`.

        **Arguments:**

        - `params`: a model, or any PyTree; every floating-point array in it gets `num_steps` rates of its dtype.
        - `rate`: one number.
        - `num_steps`: the most steps it will ever take, at least 1.

        **Returns:** a `PerLayerPerStepSGD`.

        **Raises:** `ValueError` for `num_steps` below 1.
        """
        return PerLayerPerStepSGD(per_leaf(params, rate, num_steps))

    def init(self, params: Any) -> None:
        del params

    def update(self, grads: Any, state: None, params: Any, step: Step) -> tuple[Any, None]:
        del state

        def move(p: Array, g: Array, rate: Array, name: str) -> Array:
            del name
            return p - rate[step].astype(p.dtype) * g

        return with_rates(move, params, grads, self.rates, "PerLayerPerStepSGD"), None

    def max_steps(self) -> int:
        return jax.tree.leaves(self.rates, is_leaf=is_hyperparameter)[0].value.shape[0]


def is_hyperparameter(node: Any) -> bool:
    """For `is_leaf`."""
    return isinstance(node, Hyperparameter)


def per_leaf(params: Any, start: ArrayLike, num_steps: int | None = None) -> Any:
    """A learned hyperparameter for every floating-point array: of its shape, or `[num_steps]`."""
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}: each step has its own rates.")
    adapted = eqx.filter(params, eqx.is_inexact_array)
    if not jax.tree.leaves(adapted):
        raise ValueError(f"params holds no floating-point array to give rates to, got {type(params).__name__}.")
    value = as_float_array(start)

    def one(leaf: Array) -> Hyperparameter:
        return learned(jnp.full(leaf.shape if num_steps is None else (num_steps,), value.astype(leaf.dtype)))

    return jax.tree.map(one, adapted)


def check_per_step(trees: dict[str, Any], solver: str) -> dict[str, Any]:
    """Trees of hyperparameters that must all be `[num_steps]`."""
    trees = {name: jax.tree.map(as_hyperparameter, t, is_leaf=is_hyperparameter) for name, t in trees.items()}
    shapes = {leaf.value.shape for leaf in jax.tree.leaves(trees, is_leaf=is_hyperparameter)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            f"{solver}'s {' and '.join(trees)} must all be arrays of one shape [num_steps], got shapes "
            f"{sorted(map(list, shapes))}. {solver}.like(model, ..., num_steps=...) makes them."
        )
    return trees


def with_rates(move: Any, params: Any, grads: Any, rates: Any, solver: str) -> Any:
    """`move(parameter, gradient, rate, name)` for every array that adapts."""
    # Looked up by path: the rates may cover more leaves than are adapted (ANIL with rates for the whole model).
    flat, _ = jax.tree_util.tree_flatten_with_path(rates, is_leaf=is_hyperparameter)
    by_path = {jax.tree_util.keystr(path): leaf.value for path, leaf in flat}

    def one(path: Any, p: Array, g: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if name not in by_path:
            raise ValueError(
                f"{solver} holds no rate for the parameter {name}. Build it from the model that is adapted, "
                f"{solver}.like(model, ...), after any change to the model's structure."
            )
        return move(p, g, by_path[name], name)

    return jax.tree_util.tree_map_with_path(one, params, grads)
