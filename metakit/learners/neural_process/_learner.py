"""The learner of neural processes: its networks, and which paths lead from the context to a prediction."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metakit import nn
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._static import as_node
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey
from metakit.learners._options import fraction, positive, require_sizes

from ._attention import KINDS, Attention
from ._latent import LatentPath


class NeuralProcess(eqx.Module):
    r"""A neural process: conditional, latent or attentive.

    $$r_i = h(\phi(x_i), y_i), \qquad r_* = \sum_i w_i(x_*)\, r_i, \qquad (\mu, s) = g(r_*, z, \phi(x_*)), \qquad
    \sigma = \sigma_0 + (1 - \sigma_0) \operatorname{softplus}(s), \qquad p(y_*) = N(\mu, \sigma^2)$$

    | name | options | |
    |---|---|---|
    | CNP | the defaults | $w_i = 1/n$ and no $z$; needs no key |
    | attentive CNP | `attention="multihead"` | |
    | NP | `latent=True` | $z \sim q(z \mid S)$ is drawn once for all predictions of a task |
    | attentive NP | `latent=True, attention="multihead"` | or `"laplace"`, `"dot"` |
    | NP of the latent alone | `latent=True, deterministic=False` | no $r_*$ |

    **Arguments:**

    - `in_size`, `out_size`: features of an input and of a target.
    - `latent`: whether there is a $z$; default `False`.
    - `deterministic`: whether there is an $r_*$; default `True`.
    - `attention`: how the context is weighted, as in `Attention`; default `"uniform"`, the mean.
    - `width`: units of every hidden layer, and features of $r$; default 128.
    - `latent_size`: of $z$; default 128.
    - `encoder_depth`: hidden layers of $h$, one linear layer follows; default 3.
    - `decoder_depth`: hidden layers of $g$; default 2.
    - `features`: $\phi$, a map of inputs `[n, in] -> [n, f]` that all networks but the attention read in place of $x$;
      default `None`, $x$ itself. Arrays in it are trained with the rest. Without attention a neural process learns far
      faster from `mk.nn.FourierFeatures(8, 2.5 / 0.4)`, for curves of length scale 0.4 (docs/results.md).
    - `num_heads`, `length_scale`: of `Attention`.
    - `min_scale`: $\sigma_0$, from 0 to below 1, a number or a `Hyperparameter`; default fixed at 0.1. No predicted
      standard deviation is smaller, which costs log-density where targets are known better than that: compare with
      an oracle under the same bound.
    - `key`: random key of the initial weights (Xavier uniform, as in the released code).

    Every field can be replaced by a callable of your own with `eqx.tree_at`: `encoder` maps `[n, f + out]` to `[n,
    d]` and `decoder` maps `[query, d + latent + f]` to `[query, 2 * out]`; `f` is `in` without `features`.

    **Raises:** `ValueError` for a size below 1, an unknown `attention`, heads that do not divide `width`, neither
    path, or `features` of another shape or dtype; `TypeError` for `features` that cannot be called or return no array.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, width=16, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves()(jax.random.key(1))
    >>> adapted = mk.neural_process.adapt(learner, episode.support)
    >>> mk.neural_process.predict(adapted, episode.query.x).scale.shape
    (9, 1)

    **Source:** Garnelo et al. 2018, *Conditional Neural Processes*, https://arxiv.org/abs/1807.01613, and *Neural
    Processes*, https://arxiv.org/abs/1807.01622; Kim et al. 2019, *Attentive Neural Processes*,
    https://arxiv.org/abs/1901.05761. The sizes are those of their notebooks,
    https://github.com/google-deepmind/neural-processes, which train with Adam at 1e-4, 200,000 steps of 64 curves (CNP)
    or 100,000 of 16 (NP, attentive NP).
    """

    encoder: Callable[..., Any] | None
    attention: Attention | None
    latent: LatentPath | None
    decoder: Callable[..., Any]
    features: Callable[..., Any] | None = eqx.field(converter=as_node)
    min_scale: Hyperparameter
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        latent: bool = False,
        deterministic: bool = True,
        attention: str = "uniform",
        width: int = 128,
        latent_size: int = 128,
        encoder_depth: int = 3,
        decoder_depth: int = 2,
        features: Callable[..., Any] | None = None,
        num_heads: int = 8,
        length_scale: Hyperparameter | ArrayLike = 1.0,
        min_scale: Hyperparameter | ArrayLike = 0.1,
        key: PRNGKey,
    ):
        require_sizes(in_size=in_size, out_size=out_size, width=width)
        if not (latent or deterministic):
            raise ValueError("latent and deterministic are both False; without either, no prediction sees the support.")
        require_option("attention", attention, KINDS)
        encoder_key, attention_key, latent_key, decoder_key = jax.random.split(key, 4)
        init, inputs = nn.xavier_uniform, _size_of(features, in_size)
        pair = inputs + out_size
        self.encoder = self.attention = self.latent = None
        if deterministic:
            self.encoder = nn.MLP(pair, width, width, encoder_depth, weight_init=init, key=encoder_key)
            self.attention = Attention(
                attention,
                in_size=in_size,
                value_size=width,
                width=width,
                num_heads=num_heads,
                length_scale=positive("length_scale", length_scale),
                key=attention_key,
            )
            inputs += width
        if latent:
            self.latent = LatentPath(pair, latent_size, width=width, depth=encoder_depth, key=latent_key)
            inputs += latent_size
        self.decoder = nn.MLP(inputs, 2 * out_size, width, decoder_depth, weight_init=init, key=decoder_key)
        self.min_scale = fraction("min_scale", min_scale, below_one=True)
        self.features, self.in_size, self.out_size = features, in_size, out_size

    @typed
    def read(self, x: Float[Array, "n in"]) -> Float[Array, "n features"]:
        """Inputs as the networks see them.

        **Arguments:** `x`, `[n, in]`.

        **Returns:** its `features` `[n, f]`, or `x` where there are none.
        """
        return x if self.features is None else self.features(x)


def _size_of(features: Callable[..., Any] | None, in_size: int) -> int:
    """How many numbers the networks read of an input."""
    if features is None:
        return in_size
    expected = f"features must map real inputs [n, {in_size}] to real numbers [n, f]"
    if not callable(features):
        raise TypeError(f"{expected}, such as mk.nn.FourierFeatures(8, 6.3), got {type(features).__name__}.")
    dtype = jnp.result_type(float)
    made = eqx.filter_eval_shape(features, jax.ShapeDtypeStruct((3, in_size), dtype))
    if not isinstance(made, jax.ShapeDtypeStruct):
        raise TypeError(f"{expected}, but they returned {type(made).__name__}.")
    if made.dtype != dtype or len(made.shape) != 2 or made.shape[0] != 3 or made.shape[1] < 1:
        raise ValueError(f"{expected}, but of {dtype}[3, {in_size}] they made {made.dtype}{list(made.shape)}.")
    return made.shape[1]
