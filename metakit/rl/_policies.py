"""Policies without memory: a network that gives a distribution over actions."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metakit._environment import Actions, Continuous
from metakit._static import as_node
from metakit._tree import as_float_array
from metakit._typecheck import typed

from ._distributions import AbstractDistribution, Categorical, DiagonalGaussian


class CategoricalPolicy(eqx.Module):
    """A policy over `mk.Discrete` actions.

    **Arguments:** `network`, `[n, *observation] -> [n, actions]`, which gives the logits.

    **Returns** (of a call with observations `[n, *observation]`): a `Categorical` of `n` entries.

    **Raises:** `ValueError` when the network does not give `[n, actions]`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(3, 2, key=jax.random.key(0)))
    >>> policy(jnp.ones((5, 3))).logits.shape
    (5, 2)
    """

    network: Callable[..., Any] = eqx.field(converter=as_node)

    def __call__(self, observations: Float[Array, "n *observation"]) -> Categorical:
        return Categorical(_outputs(self.network, observations))


class GaussianPolicy(eqx.Module):
    r"""A policy over `mk.Continuous` actions: a network gives the mean, and the noise does not depend on what is seen.

    $$a \sim N(f_\theta(o), \operatorname{diag}(\sigma^2)), \qquad \log \sigma \text{ a weight like any other}$$

    so an inner loop that adapts everything adapts the noise too, as published.

    **Arguments:**

    - `network`: `[n, *observation] -> [n, size]`, in the units of the environment's actions.
    - `size`: numbers in an action.
    - `log_std`: where $\log \sigma$ starts, one number; default 0.

    **Returns** (of a call with observations `[n, *observation]`): a `DiagonalGaussian` of `n` entries.

    **Raises:** `ValueError` for a size below 1, or when the network does not give `[n, size]`.

    **Source:** Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control", section 5,
    https://arxiv.org/abs/1604.06778. The released MAML code keeps $\sigma$ above $10^{-6}$; here nothing does.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 8, 1, key=jax.random.key(0)), 2)
    >>> policy(jnp.ones((5, 2))).mean.shape
    (5, 2)
    """

    network: Callable[..., Any] = eqx.field(converter=as_node)
    log_std: Float[Array, " size"]

    def __init__(self, network: Callable[..., Any], size: int, log_std: ArrayLike = 0.0):
        start = as_float_array(log_std)
        self.network = network
        self.log_std = jnp.full((Continuous(size).size,), start, start.dtype)

    def __call__(self, observations: Float[Array, "n *observation"]) -> DiagonalGaussian:
        mean = _outputs(self.network, observations)
        if mean.shape[1] != self.log_std.shape[0]:
            raise ValueError(f"the network must give [n, {self.log_std.shape[0]}], got {list(mean.shape)}.")
        return DiagonalGaussian(mean, jnp.broadcast_to(self.log_std, mean.shape))


def _outputs(network: Callable[..., Any], observations: Array) -> Array:
    outputs = network(observations)
    if outputs.ndim != 2 or outputs.shape[0] != observations.shape[0]:
        raise ValueError(
            f"the policy's network must map [n, *observation] to [n, size], got {list(outputs.shape)} for "
            f"{list(observations.shape)}."
        )
    return outputs


@typed
def distributions(policy: Callable[..., Any], observations: Float[Array, "episodes horizon *observation"]) -> Any:
    """A policy's distributions at every step of several episodes.

    **Arguments:** `policy`, called with `[n, *observation]`; `observations`, `[episodes, horizon, *observation]`.

    **Returns:** a distribution, every array `[episodes, horizon, ...]`.

    **Raises:** `TypeError` for a policy that returns no distribution.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(3, 2, key=jax.random.key(0)))
    >>> mk.rl.distributions(policy, jnp.ones((5, 4, 3))).logits.shape
    (5, 4, 2)
    """
    episodes, horizon, *rest = observations.shape
    flat = policy(observations.reshape(episodes * horizon, *rest))
    _require_distribution(flat)
    return jax.tree.map(lambda leaf: leaf.reshape(episodes, horizon, *leaf.shape[1:]), flat)


def check_fits(distribution: Any, actions: Actions) -> None:
    """A policy for other actions than the environment's would draw some that are none, or never draw others."""
    _require_distribution(distribution)
    if distribution.actions not in (None, actions):
        raise ValueError(
            f"the policy acts in {distribution.actions}, but the environment's actions are {actions}. Build the policy "
            f"with an output for each of the environment's actions ({actions.size})."
        )


def _require_distribution(made: Any) -> None:
    if not isinstance(made, AbstractDistribution):
        raise TypeError(
            f"a policy must return an mk.rl distribution, got {type(made).__name__}. Wrap the network: "
            "mk.rl.CategoricalPolicy(network) or mk.rl.GaussianPolicy(network, size)."
        )
