"""Update rules with a velocity."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from metakit._hyperparameter import Hyperparameter

from ._rates import check_per_step, is_hyperparameter, per_leaf, with_rates
from ._solver import AbstractSolver, Step, as_scalar, moved_by


class AbstractMomentum(AbstractSolver):
    r"""A solver whose step is linear in a velocity, which makes it reversible:

    $$v_{t+1} = \mu_t v_t + \kappa_t g_t, \qquad \theta_{t+1} = \theta_t - \alpha_t v_{t+1}$$

    Its state is the velocity alone, of the structure of the parameters. To make one of yours usable with
    `mk.inner.Reversible`, subclass this and add two methods to those of `AbstractSolver`:

    - `coefficients(params, step) -> (rates, decays, gains)`: $\alpha_t$, $\mu_t$ and $\kappa_t$, each a tree with one
      scalar for every array of `params`, in its dtype;
    - `with_decays(change)`: the same solver with `change` applied to each array of decays, on which the gains follow.
    """

    @abc.abstractmethod
    def coefficients(self, params: Any, step: Step) -> tuple[Any, Any, Any]:
        """Rates, decays and gains of a step."""

    @abc.abstractmethod
    def with_decays(self, change: Callable[[Array], Array]) -> "AbstractMomentum":
        """The same solver with other decays."""


class Momentum(AbstractMomentum):
    r"""Gradient descent with heavy-ball or Nesterov momentum.

    $$v_{t+1} = \mu v_t + g_t, \qquad \theta_{t+1} = \theta_t - \alpha\, v_{t+1}$$

    and with `nesterov=True` the step is $\theta_{t+1} = \theta_t - \alpha\,(\mu v_{t+1} + g_t)$. The velocity starts
    at zero for every task.

    **Arguments:**

    - `rate`: $\alpha$, a number or a `Hyperparameter`.
    - `decay`: $\mu$, usually in `[0, 1)`; a number or a `Hyperparameter`. Zero gives `SGD`.
    - `nesterov`: static; default `False`.

    **Source:** Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", equations
    1 to 4, https://proceedings.mlr.press/v28/sutskever13.html, with the rate taken out of the velocity as in
    `optax.sgd`: for a constant rate the two are the same path.

    >>> import jax.numpy as jnp, metakit as mk
    >>> solver, params = mk.inner.Momentum(0.5, 0.9), jnp.ones(1)
    >>> params, velocity = solver.update(jnp.ones(1), solver.init(params), params, jnp.zeros((), int))
    >>> float(params[0]), float(velocity[0])
    (0.5, 1.0)
    """

    rate: Hyperparameter
    decay: Hyperparameter
    nesterov: bool = eqx.field(static=True)

    def __init__(self, rate: Hyperparameter | ArrayLike, decay: Hyperparameter | ArrayLike, nesterov: bool = False):
        self.rate = as_scalar(rate, "Momentum", "rate")
        self.decay = as_scalar(decay, "Momentum", "decay")
        self.nesterov = nesterov

    def init(self, params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, grads: Any, state: Any, params: Any, step: Step) -> tuple[Any, Any]:
        del step
        decay = self.decay.value

        def accumulate(velocity: Array, gradient: Array) -> Array:
            return decay.astype(velocity.dtype) * velocity + gradient

        velocity = jax.tree.map(accumulate, state, grads)
        direction = jax.tree.map(accumulate, velocity, grads) if self.nesterov else velocity
        return moved_by(params, direction, self.rate.value), velocity

    def max_steps(self) -> None:
        return None

    def coefficients(self, params: Any, step: Step) -> tuple[Any, Any, Any]:
        del step
        if self.nesterov:
            raise ValueError(
                "Momentum(nesterov=True) cannot be reversed: its step uses the gradient at the very parameters that "
                "are to be restored. Use Momentum(rate, decay), or mk.inner.MixedMode(checkpointed=True) as adjoint."
            )

        def everywhere(value: Array) -> Any:
            return jax.tree.map(lambda p: value.astype(p.dtype), params)

        return everywhere(self.rate.value), everywhere(self.decay.value), everywhere(jnp.ones(()))

    def with_decays(self, change: Callable[[Array], Array]) -> "Momentum":
        return eqx.tree_at(lambda solver: solver.decay.value, self, replace_fn=change)


class PerLayerPerStepMomentum(AbstractMomentum):
    r"""Heavy-ball momentum with a rate and a decay for every array of parameters and every step.

    $$v_{t+1} = \mu_t v_t + \kappa_t g_t, \qquad \theta_{t+1} = \theta_t - \alpha_t v_{t+1}$$

    with $\kappa_t = 1$, or $\kappa_t = 1 - \mu_t$ when `averaged`, for each array $\theta$ by itself. Build it with
    `.like`; rates and decays are learned. `mk.inner.Reversible` differentiates it over thousands of steps.

    **Arguments:**

    - `rates`, `decays`: PyTrees with the paths of the parameters' leaves, each a `Hyperparameter` or an array
      `[num_steps]`. They may have more leaves than are adapted. Plain arrays become fixed.
    - `averaged`: static; default `False`, the velocity of `Momentum`. `True` is the velocity of the paper, an average
      of gradients that stays of their size.

    **Raises:** `ValueError` when rates and decays are not all of one shape `[num_steps]`; at the first step, when a
    parameter has none; and when more steps are asked for than there are.

    **Source:** Maclaurin, Duvenaud and Adams 2015, "Gradient-based Hyperparameter Optimization through Reversible
    Learning", algorithm 1, https://arxiv.org/abs/1502.03492. As in the released code, the step uses the velocity that
    it has just updated; the paper's listing does not say so, but its algorithm 2 needs it.

    >>> import jax.numpy as jnp, metakit as mk
    >>> solver = mk.inner.PerLayerPerStepMomentum.like({"w": jnp.ones(3)}, 0.1, 0.9, num_steps=5)
    >>> solver.rates["w"].value.shape, solver.decays["w"].value.shape, solver.max_steps()
    ((5,), (5,), 5)
    """

    rates: Any
    decays: Any
    averaged: bool = eqx.field(static=True)

    def __init__(self, rates: Any, decays: Any, averaged: bool = False):
        self.rates, self.decays = check_per_step({"rates": rates, "decays": decays}, type(self).__name__).values()
        self.averaged = averaged

    @staticmethod
    def like(
        params: Any, rate: ArrayLike, decay: ArrayLike, num_steps: int, averaged: bool = False
    ) -> "PerLayerPerStepMomentum":
        """Learned rates and decays that all start at one value.

        **Arguments:**

        - `params`: a model, or any PyTree; every floating-point array in it gets `num_steps` rates and decays.
        - `rate`, `decay`: one number each.
        - `num_steps`: the most steps it will ever take, at least 1.
        - `averaged`: as for the class.

        **Returns:** a `PerLayerPerStepMomentum`.

        **Raises:** `ValueError` for `num_steps` below 1.
        """
        rates, decays = (per_leaf(params, value, num_steps) for value in (rate, decay))
        return PerLayerPerStepMomentum(rates, decays, averaged)

    def init(self, params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(self, grads: Any, state: Any, params: Any, step: Step) -> tuple[Any, Any]:
        rates, decays, gains = self.coefficients(params, step)
        velocity = jax.tree.map(lambda v, g, decay, gain: decay * v + gain * g, state, grads, decays, gains)
        return jax.tree.map(lambda p, v, rate: p - rate * v, params, velocity, rates), velocity

    def max_steps(self) -> int:
        return jax.tree.leaves(self.rates, is_leaf=is_hyperparameter)[0].value.shape[0]

    def coefficients(self, params: Any, step: Step) -> tuple[Any, Any, Any]:
        def at_step(p: Array, _: Array, values: Array, name: str) -> Array:
            del name
            return values[step].astype(p.dtype)

        rates, decays = (
            with_rates(at_step, params, params, values, type(self).__name__) for values in (self.rates, self.decays)
        )
        gains = jax.tree.map(lambda decay: 1 - decay if self.averaged else jnp.ones_like(decay), decays)
        return rates, decays, gains

    def with_decays(self, change: Callable[[Array], Array]) -> "PerLayerPerStepMomentum":
        return eqx.tree_at(lambda solver: solver.decays, self, jax.tree.map(change, self.decays))
