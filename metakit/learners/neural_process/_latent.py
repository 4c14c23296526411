"""The latent path: one random vector that all predictions of a task share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float

from metakit import nn
from metakit._normal import Normal
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._attention import masked_mean


class LatentPath(eqx.Module):
    r"""A distribution over functions, read off a set of points.

    $$s = \frac1n \sum_i h(x_i, y_i), \qquad u = \operatorname{relu}(P s), \qquad
    q(z) = N\bigl(M u,\; (0.1 + 0.9 \operatorname{sigmoid}(V u))^2\bigr)$$

    **Arguments:**

    - `pair_size`: features of a point, those of its input and its target together.
    - `size`: of $z$, at least 1; default 128.
    - `width`: units of each layer of $h$; default 128.
    - `depth`: hidden layers of $h$; default 3.
    - `key`: random key of the weights.

    **Returns** (of a call with points `[n, pair]` and a mask `[n]`): a `mk.Normal` of shape `[size]`, whose scale lies
    between 0.1 and 1. Neither the points' order nor a copy of all of them changes it.

    **Raises:** `ValueError` for a size below 1.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> path = mk.neural_process.LatentPath(2, 4, width=8, key=jax.random.key(0))
    >>> path(jnp.ones((5, 2)), jnp.ones(5, bool)).shape
    (4,)

    **Source:** Garnelo et al. 2018, *Neural Processes*, https://arxiv.org/abs/1807.01622; bounds of the scale and
    sizes: the notebook of Kim et al. 2019, https://github.com/google-deepmind/neural-processes.
    """

    encoder: Callable[..., Any]
    hidden: nn.Linear
    mean: nn.Linear
    scale: nn.Linear

    @keyed
    def __init__(self, pair_size: int, size: int = 128, *, width: int = 128, depth: int = 3, key: PRNGKey):
        if size < 1:
            raise ValueError(f"latent_size must be at least 1, got {size}. To do without a latent path: latent=False.")
        init = nn.xavier_uniform
        encoder_key, hidden_key, mean_key, scale_key = jax.random.split(key, 4)
        middle = max(1, (width + size) // 2)
        self.encoder = nn.MLP(pair_size, width, width, depth, weight_init=init, key=encoder_key)
        self.hidden = nn.Linear(width, middle, weight_init=init, key=hidden_key)
        self.mean = nn.Linear(middle, size, weight_init=init, key=mean_key)
        self.scale = nn.Linear(middle, size, weight_init=init, key=scale_key)

    @typed
    def __call__(self, pairs: Float[Array, "n pair"], mask: Bool[Array, " n"]) -> Normal:
        return self.pooled(self.encoder(pairs), mask)

    def pooled(self, encoded: Float[Array, "n width"], mask: Bool[Array, " n"]) -> Normal:
        """The same from points that went through the encoder, which two sets can share."""
        hidden = jax.nn.relu(self.hidden(masked_mean(encoded, mask)[None]))
        return Normal(self.mean(hidden)[0], 0.1 + 0.9 * jax.nn.sigmoid(self.scale(hidden)[0]))
