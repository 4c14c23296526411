"""Distributions over actions, with any leading axes."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metakit._environment import Actions, Continuous, Discrete
from metakit._typecheck import typed
from metakit._types import PRNGKey


class AbstractDistribution(eqx.Module):
    """A distribution over actions: what `predict` gives in reinforcement learning.

    Every array leads with the same axes, one for each thing that is batched, and so does everything the methods
    return. To write one, subclass it with

    - `sample(key)`: one action for each entry; no gradient flows through it.
    - `mode()`: the likeliest action.
    - `log_prob(actions)`: natural logarithm of the probability (or density) of given actions.
    - `entropy()`: in nats.
    - `divergence(other)`: the Kullback-Leibler divergence from this one to `other`, in nats.
    - `actions`, a property: the `mk.Discrete` or `mk.Continuous` that it is over. Environments and given actions are
      checked against it; `None` checks nothing.
    """

    @property
    @abc.abstractmethod
    def actions(self) -> Actions | None:
        """What it is over; `None` for something else than the two kinds."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey) -> Array:
        """One action for each entry."""

    @abc.abstractmethod
    def mode(self) -> Array:
        """The likeliest action of each entry."""

    @abc.abstractmethod
    def log_prob(self, actions: Array) -> Float[Array, "*batch"]:
        """The logarithm of the probability of each action."""

    @abc.abstractmethod
    def entropy(self) -> Float[Array, "*batch"]:
        """The entropy of each entry."""

    @abc.abstractmethod
    def divergence(self, other: Any) -> Float[Array, "*batch"]:
        """The Kullback-Leibler divergence from each entry to its counterpart in `other`."""


class Categorical(AbstractDistribution):
    r"""One of several actions.

    $$\pi(a) = \operatorname{softmax}_a z, \qquad \mathrm{KL}(\pi \,\Vert\, \rho) = \sum_a \pi(a) (\log \pi(a) - \log
    \rho(a))$$

    **Arguments:** `logits`, $z$, `[*batch, actions]`; they need not be normalised.

    `log_prob` of an action that is none is NaN, since compiled code cannot raise.

    >>> import jax.numpy as jnp
    >>> f"{Categorical(jnp.log(jnp.array([0.25, 0.75]))).log_prob(jnp.array(1)):.4f}"
    '-0.2877'
    """

    logits: Float[Array, "*batch actions"]

    @property
    def actions(self) -> Discrete:
        """As many as there are logits."""
        return Discrete(self.logits.shape[-1])

    def sample(self, key: PRNGKey) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, jax.lax.stop_gradient(self.logits)).astype(jnp.int32)

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    @typed
    def log_prob(self, actions: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        size = self.logits.shape[-1]
        logs = jax.nn.log_softmax(self.logits)
        chosen = jnp.take_along_axis(logs, jnp.clip(actions, 0, size - 1)[..., None], axis=-1)[..., 0]
        return jnp.where((actions >= 0) & (actions < size), chosen, jnp.full_like(chosen, jnp.nan))

    def entropy(self) -> Float[Array, "*batch"]:
        return -jnp.sum(_times_log(self.logits, self.logits), axis=-1)

    def divergence(self, other: "Categorical") -> Float[Array, "*batch"]:
        return jnp.sum(_times_log(self.logits, self.logits) - _times_log(self.logits, other.logits), axis=-1)


def _times_log(logits: Array, others: Array) -> Array:
    """`softmax(logits) * log_softmax(others)`, with 0 log 0 = 0."""
    weights, logs = jax.nn.softmax(logits), jax.nn.log_softmax(others)
    return jnp.where(weights > 0, weights * jnp.where(weights > 0, logs, jnp.zeros_like(logs)), jnp.zeros_like(logs))


class DiagonalGaussian(AbstractDistribution):
    r"""Real actions with independent normal noise.

    $$\log \pi(a) = -\sum_i \Bigl( \tfrac12 \bigl(\tfrac{a_i - \mu_i}{\sigma_i}\bigr)^2 + \log \sigma_i + \tfrac12
    \log 2\pi \Bigr), \qquad
    \mathrm{KL}(\pi \,\Vert\, \rho) = \sum_i \Bigl( \log \tfrac{\sigma'_i}{\sigma_i} + \tfrac{\sigma_i^2 +
    (\mu_i - \mu'_i)^2}{2 \sigma_i'^2} - \tfrac12 \Bigr)$$

    **Arguments:** `mean`, $\mu$, and `log_std`, $\log \sigma$, both `[*batch, size]`.

    **Raises:** `ValueError` in `log_prob`, for actions of another size.

    >>> import jax.numpy as jnp
    >>> f"{DiagonalGaussian(jnp.zeros(2), jnp.zeros(2)).log_prob(jnp.zeros(2)):.4f}"
    '-1.8379'
    """

    mean: Float[Array, "*batch size"]
    log_std: Float[Array, "*batch size"]

    @property
    def actions(self) -> Continuous:
        """As many numbers as the mean has."""
        return Continuous(self.mean.shape[-1])

    def sample(self, key: PRNGKey) -> Float[Array, "*batch size"]:
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return jax.lax.stop_gradient(self.mean + jnp.exp(self.log_std) * noise)

    def mode(self) -> Float[Array, "*batch size"]:
        return self.mean

    @typed
    def log_prob(self, actions: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
        if actions.shape[-1:] != self.mean.shape[-1:]:  # a single number would pass for as many as there should be
            raise ValueError(
                f"actions must be {list(self.mean.shape)}, {self.mean.shape[-1]} numbers each, got shape "
                f"{list(actions.shape)}."
            )
        z = (actions - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * z * z + self.log_std + 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(self.log_std + 0.5 * (1 + math.log(2 * math.pi)), axis=-1)

    def divergence(self, other: "DiagonalGaussian") -> Float[Array, "*batch"]:
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        spread = jnp.exp(2 * (self.log_std - other.log_std))
        return jnp.sum(other.log_std - self.log_std + 0.5 * (spread + shift * shift - 1), axis=-1)
