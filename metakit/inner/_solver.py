"""Update rules of the inner loop."""

import abc
from typing import Any, TypeAlias

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, Int

from metakit._hyperparameter import Hyperparameter, as_hyperparameter

Step: TypeAlias = Int[Array, ""]


class AbstractSolver(eqx.Module):
    r"""How one inner step moves the parameters: $(\theta_{t+1}, s_{t+1}) = u(g_t, s_t, \theta_t, t)$.

    To write one, subclass this as an Equinox module whose numbers are `Hyperparameter`s, so that each is a leaf with
    a gradient, and write three methods:

    - `init(params) -> state`: the state before the first step, a PyTree of arrays (`None` for no state);
    - `update(grads, state, params, step) -> (params, state)`: one step; shapes and dtypes must not change;
    - `max_steps() -> int | None`: the most steps the solver has hyperparameters for, `None` for any number.

    `params` and `grads` hold only floating-point arrays (and `None` where a leaf is not adapted).
    """

    @abc.abstractmethod
    def init(self, params: Any) -> Any:
        """The state before the first step."""

    @abc.abstractmethod
    def update(self, grads: Any, state: Any, params: Any, step: Step) -> tuple[Any, Any]:
        """The parameters and the state after step number `step`, which counts from 0."""

    @abc.abstractmethod
    def max_steps(self) -> int | None:
        """The most steps the solver can take, `None` for any number."""


def moved_by(params: Any, direction: Any, rate: Array) -> Any:
    """`params - rate * direction`, leaf by leaf, each in the dtype of its parameter."""
    return jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, params, direction)


class SGD(AbstractSolver):
    r"""Gradient descent with one rate.

    $$\theta_{t+1} = \theta_t - \alpha\, g_t$$

    **Arguments:**

    - `rate`: $\alpha$, a number or a `Hyperparameter`; `mk.learned(0.4)` has meta-training move it. It depends on the
      reduction of the inner loss: the MAML paper's 0.4 goes with a sum over examples divided by the shot, which is
      2.0 for a mean over the examples of 5 classes.

    >>> import jax.numpy as jnp, metakit as mk
    >>> solver = mk.inner.SGD(0.5)
    >>> params, state = solver.update(jnp.ones(2), solver.init(jnp.ones(2)), jnp.ones(2), jnp.zeros((), int))
    >>> params.tolist()
    [0.5, 0.5]
    """

    rate: Hyperparameter

    def __init__(self, rate: Hyperparameter | ArrayLike):
        self.rate = as_scalar(rate, "SGD", "rate")

    def init(self, params: Any) -> None:
        del params

    def update(self, grads: Any, state: None, params: Any, step: Step) -> tuple[Any, None]:
        del state, step
        return moved_by(params, grads, self.rate.value), None

    def max_steps(self) -> None:
        return None


def as_scalar(value: Hyperparameter | ArrayLike, solver: str, name: str) -> Hyperparameter:
    """A solver's number as a hyperparameter of shape `[]`."""
    hyperparameter = as_hyperparameter(value)
    if hyperparameter.value.shape != ():
        raise ValueError(
            f"{solver}'s {name} must be one number, got an array of shape {list(hyperparameter.value.shape)}. For one "
            "rate per parameter use PerParameterSGD, for one per step and layer PerLayerPerStepSGD."
        )
    return hyperparameter
