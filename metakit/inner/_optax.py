"""Any optax optimiser as an inner solver."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from metakit._hyperparameter import Hyperparameter, as_hyperparameter, fixed

from ._solver import AbstractSolver, Step

_EPS_ROOT = 1e-8


class Optax(AbstractSolver):
    r"""An inner loop by any optax optimiser, its hyperparameters leaves with gradients.

    **Arguments:**

    - `factory`: what makes the optimiser, such as `optax.adam`; static. Pass the factory itself, not the optimiser
      it returns: that hides its numbers in closures, where no gradient reaches them and each new rate compiles again.
    - `**hyperparameters`: the factory's arguments by name. Floats, floating-point arrays and `Hyperparameter`s become
      leaves; anything else (`nesterov=True`, an integer, a schedule, `None`) is static.

    **`eps_root`.** Adam divides by $\sqrt{\hat v + \epsilon_{root}} + \epsilon$, and the derivative of a square root
    at 0 is infinite: with optax's default $\epsilon_{root}=0$, the meta-gradient is NaN as soon as one parameter's
    inner gradient is 0, as behind any dead ReLU. So where the factory has an `eps_root` whose default is 0 and you
    give none, it is set to 1e-8 here, a `fixed` hyperparameter like the others. It slows parameters whose gradient is
    below about 1e-4.

    **Raises:** `TypeError` when `factory` is not a function that takes these arguments; `ValueError` when
    `eps_root=0` is given.

    **Source:** https://optax.readthedocs.io; Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, for Adam.

    >>> import optax, metakit as mk
    >>> solver = mk.inner.Optax(optax.adam, learning_rate=mk.learned(0.1), b1=0.0)
    >>> sorted(solver.hyperparameters), float(solver.hyperparameters["eps_root"].value) > 0
    (['b1', 'eps_root', 'learning_rate'], True)
    """

    factory: Callable[..., Any] = eqx.field(static=True)
    hyperparameters: dict[str, Hyperparameter]
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    def __init__(self, factory: Callable[..., Any], **hyperparameters: Any):
        if not callable(factory):
            raise TypeError(
                f"factory must be a function that makes an optax optimiser, such as optax.adam, got "
                f"{type(factory).__name__}. Write mk.inner.Optax(optax.adam, learning_rate=0.1), not "
                "mk.inner.Optax(optax.adam(0.1))."
            )
        signature = inspect.signature(factory)
        try:
            signature.bind(**hyperparameters)
        except TypeError as error:
            raise TypeError(f"{_name(factory)} cannot be called with these hyperparameters: {error}.") from error
        numbers = {name: value for name, value in hyperparameters.items() if _is_number(value)}
        self.factory = factory
        self.hyperparameters = {name: as_hyperparameter(value) for name, value in numbers.items()}
        self.options = tuple(sorted((name, v) for name, v in hyperparameters.items() if name not in numbers))
        eps_root = signature.parameters.get("eps_root")
        if eps_root is None:
            return
        if "eps_root" not in hyperparameters and eps_root.default == 0:
            self.hyperparameters["eps_root"] = fixed(_EPS_ROOT)
        elif _is_zero(hyperparameters.get("eps_root")):
            raise ValueError(
                f"eps_root=0 in {_name(factory)} makes the meta-gradient NaN wherever an inner gradient is 0. Leave "
                f"it out (it is then {_EPS_ROOT}) or give a positive number."
            )

    def init(self, params: Any) -> Any:
        return self._transformation(params).init(params)

    def update(self, grads: Any, state: Any, params: Any, step: Step) -> tuple[Any, Any]:
        del step  # optax counts its own steps
        # optax relies on JAX's standard promotion (decay ** count); under the strict setting it would raise.
        with jax.numpy_dtype_promotion("standard"):
            updates, new_state = self._transformation(params).update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        # A dtype that drifts would make the loop's carry change type between steps.
        return params, jax.tree.map(lambda new, old: new.astype(jnp.result_type(old)), new_state, state)

    def max_steps(self) -> None:
        return None

    def _transformation(self, params: Any) -> Any:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        numbers = {name: number.value.astype(dtype) for name, number in self.hyperparameters.items()}
        return self.factory(**numbers, **dict(self.options))


def _is_number(value: Any) -> bool:
    if isinstance(value, Hyperparameter | float):
        return True
    return isinstance(value, Array | np.ndarray | np.generic) and jnp.issubdtype(value.dtype, jnp.floating)


def _is_zero(value: Any) -> bool:
    if isinstance(value, Hyperparameter):
        value = value.value
    # A traced or learned value cannot be looked at here.
    return value is not None and not isinstance(value, Tracer) and bool(np.all(np.asarray(value) == 0))


def _name(factory: Any) -> str:
    return getattr(factory, "__qualname__", repr(factory))
