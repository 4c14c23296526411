"""The learner of the Neural Statistician: its networks, and what they say about a set."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from metakit import nn
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._static import as_node
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey
from metakit.learners._options import fraction, not_negative, require_sizes

_LIKELIHOODS = ("gaussian", "bernoulli")

Norm = Callable[[int], Any]


def dense_network(
    in_size: int, out_size: int, width: int, depth: int, norm: Norm | None, key: PRNGKey
) -> Callable[..., Any]:
    """Hidden layers with ELU, and with a norm before it where there is one."""
    return nn.MLP(in_size, out_size, width, depth, jax.nn.elu, weight_init=nn.xavier_uniform, norm=norm, key=key)


class NormedHead(eqx.Module):
    """A network whose outputs, of all features together, have one mean and one variance.

    Means and log-variances keep their sizes to one another, unlike with a norm of each feature."""

    network: Callable[..., Any]
    norm: Any

    def __call__(self, x: Float[Array, "n in"]) -> Float[Array, "n out"]:
        return self.norm(self.network(x)[:, None])[:, 0]


class Statistician(eqx.Module):
    r"""A Neural Statistician: each set $D$ has a context $c$, each of its examples latents $z$.

    $$c \sim N(0, I), \qquad z_l \sim p(z_l \mid z_{l-1}, c), \qquad x \sim p(x \mid z_1, \dots, z_L, c)$$

    $$\log p(D) \ge \sum_{x \in D} \Bigl( E \log p(x \mid z, c) - \sum_l E\, \mathrm{KL}\bigl(q(z_l \mid x, z_{l-1}, c)
    \,\|\, p(z_l \mid z_{l-1}, c)\bigr) \Bigr) - \mathrm{KL}\bigl(q(c \mid D)\,\|\,N(0, I)\bigr)$$

    The statistic network is $q(c \mid D) = N\bigl(\mu, \sigma^2\bigr)$ with $(\mu, \log \sigma^2) = b\bigl(\frac1n
    \sum_{x \in D} a(e(x))\bigr)$: no order, and a copy of the whole set changes nothing. Log-variances are kept in
    -4..3. `of_vectors` and `of_images` build the usual networks.

    **Arguments:**

    - `encode`: $e$, what all networks see of an example, `[n, *in] -> [n, features]`.
    - `decode`: the parameters of $p(x \mid z, c)$ from latents and context, `[n, L * latent_size + context_size]` to
      `[n, *in, 2]` for `"gaussian"`, mean and logarithm of the standard deviation, or to logits `[n, *in]` for
      `"bernoulli"`.
    - `features`: size of what `encode` returns.
    - `context_size`, `latent_size`: of $c$ and of each $z_l$, at least 1.
    - `likelihood`: `"gaussian"` for real vectors, or `"bernoulli"` for images whose pixels lie in 0..1.
    - `num_layers`: latents $L$ of an example, at least 1; default 1.
    - `width`, `depth`: units and number of hidden layers, with ELU, of each network ($a$, $b$, $q$ and $p$); default
      128 and 2.
    - `norm`: makes a norm from its features, before each ELU; one more, of a single feature, makes all means and
      log-variances that a network gives of a batch one distribution. Default none. `mk.nn.BatchStatNorm` is the
      published one.
    - `emphasis`: $\alpha$, at least 0, a number or a `Hyperparameter`; default fixed at 0, where the loss is the bound.
      Published runs anneal it from 1 to 0, so that the latents are used at all: `anneal_emphasis`.
    - `sample_dropout`: probability, below 1, that an example is left out of the statistic network's mean (never of the
      loss, and never all of a set); default 0, as published. It shows the network smaller sets than the task has: with
      one shot in the test, it has seen sets of one.
    - `key`: random key of the initial weights (Xavier uniform).

    Batch norms take the statistics of the whole task in training. A test compares sets of one size with sets of
    another, and few of them: fix the statistics with `mk.statistician.freeze_statistics` before `adapt`, which refuses
    others.

    **Raises:** `ValueError` for a size or number of layers below 1, an unknown `likelihood`, or an option of several
    numbers.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> support = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> adapted = mk.statistician.adapt(learner, support)
    >>> mk.statistician.predict(adapted, support.x).shape
    (6, 3)

    **Source:** Edwards and Storkey 2017, *Towards a Neural Statistician*, https://arxiv.org/abs/1606.02185; weights,
    clamps, sizes and norms as in https://github.com/conormdurkan/neural-statistician. There $q$ and $p$ have residual
    blocks, running statistics in a test, and an epsilon of 1e-3 in the norms of a single feature; here none of these.
    """

    encode: Callable[..., Any] = eqx.field(converter=as_node)
    before_pooling: Callable[..., Any]
    after_pooling: Callable[..., Any]
    inference: tuple[Callable[..., Any], ...]
    prior: tuple[Callable[..., Any], ...]
    decode: Callable[..., Any] = eqx.field(converter=as_node)
    emphasis: Hyperparameter
    sample_dropout: Hyperparameter
    likelihood: Literal["gaussian", "bernoulli"] = eqx.field(static=True)
    context_size: int = eqx.field(static=True)
    latent_size: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        encode: Callable[..., Any],
        decode: Callable[..., Any],
        *,
        features: int,
        context_size: int,
        latent_size: int,
        likelihood: str,
        num_layers: int = 1,
        width: int = 128,
        depth: int = 2,
        norm: Norm | None = None,
        emphasis: Hyperparameter | ArrayLike = 0.0,
        sample_dropout: Hyperparameter | ArrayLike = 0.0,
        key: PRNGKey,
    ):
        require_sizes(context_size=context_size, latent_size=latent_size, num_layers=num_layers)
        require_option("likelihood", likelihood, _LIKELIHOODS)

        pool_key, summary_key, *keys = jax.random.split(key, 2 + 2 * num_layers)

        def network(in_size: int, out_size: int, key: PRNGKey) -> Callable[..., Any]:
            return dense_network(in_size, out_size, width, depth, norm, key)

        def normal(in_size: int, size: int, key: PRNGKey) -> Callable[..., Any]:
            parameters = network(in_size, 2 * size, key)
            return parameters if norm is None else NormedHead(parameters, norm(1))

        # The first latent has none above it.
        above = [context_size] + [context_size + latent_size] * (num_layers - 1)
        self.encode = encode
        self.before_pooling = network(features, width, pool_key)
        self.after_pooling = normal(width, context_size, summary_key)
        self.inference = tuple(
            normal(features + size, latent_size, k) for size, k in zip(above, keys[::2], strict=True)
        )
        self.prior = tuple(normal(size, latent_size, k) for size, k in zip(above, keys[1::2], strict=True))
        self.decode = decode
        self.emphasis = not_negative("emphasis", emphasis)
        self.sample_dropout = fraction("sample_dropout", sample_dropout, below_one=True)
        self.likelihood = likelihood  # pyright: ignore[reportAttributeAccessIssue]
        self.context_size, self.latent_size = context_size, latent_size


@typed
def anneal_emphasis(learner: Statistician, step: Int[Array, ""], *, halve_every: int) -> Statistician:
    r"""The learner with the emphasis of a step, for the `anneal` of `mk.train.fit`.

    $$\alpha = 2^{-\text{step} / \text{halve\_every}}$$

    **Arguments:**

    - `learner`: a `Statistician`; its own `emphasis` is replaced.
    - `step`: the number of the step, from 0; may be traced.
    - `halve_every`: steps in which the emphasis halves, at least 1. In published runs an epoch, of 300.

    **Returns:** a `Statistician`.

    **Raises:** `ValueError` for a `halve_every` below 1.

    >>> import functools, jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> anneal = functools.partial(mk.statistician.anneal_emphasis, halve_every=100)
    >>> float(anneal(learner, jax.numpy.asarray(200)).emphasis.value)
    0.25

    **Source:** https://github.com/conormdurkan/neural-statistician, where it falls in steps, once an epoch.
    """
    require_sizes(halve_every=halve_every)
    dtype = learner.emphasis.value.dtype
    value = jnp.exp2(-step.astype(dtype) / halve_every)
    return eqx.tree_at(lambda node: node.emphasis.value, learner, value)


class VectorDecoder(eqx.Module):
    """Mean and logarithm of the standard deviation of each feature of a vector."""

    network: Callable[..., Any]

    def __call__(self, hidden: Float[Array, "n hidden"]) -> Float[Array, "n features two"]:
        parameters = self.network(hidden)
        return parameters.reshape(parameters.shape[0], -1, 2)


def of_vectors(
    in_size: int,
    *,
    context_size: int = 3,
    latent_size: int = 32,
    num_layers: int = 1,
    width: int = 128,
    depth: int = 2,
    norm: Norm | None = None,
    emphasis: Hyperparameter | ArrayLike = 0.0,
    sample_dropout: Hyperparameter | ArrayLike = 0.0,
    key: PRNGKey,
) -> Statistician:
    """A statistician of sets of real vectors, with a Gaussian likelihood; its encoder is the identity.

    **Arguments:** `in_size`, features of an example, and the options of `Statistician`. The defaults are the published
    ones for sets of numbers: a context of 3, latents of 32, layers of 128 (the paper's sets hold 200). `norm` is the
    decoder's too.

    **Returns:** a `Statistician`.

    **Raises:** `ValueError` for a size or number of layers below 1.

    >>> import jax, metakit as mk
    >>> mk.statistician.of_vectors(1, key=jax.random.key(0)).context_size
    3
    """
    require_sizes(in_size=in_size, width=width, depth=depth)
    require_sizes(context_size=context_size, latent_size=latent_size, num_layers=num_layers)
    decoder_key, key = jax.random.split(key)
    hidden = num_layers * latent_size + context_size
    decoder = dense_network(hidden, 2 * in_size, width, depth, norm, decoder_key)
    return Statistician(
        identity,
        VectorDecoder(decoder),
        features=in_size,
        context_size=context_size,
        latent_size=latent_size,
        likelihood="gaussian",
        num_layers=num_layers,
        width=width,
        depth=depth,
        norm=norm,
        emphasis=emphasis,
        sample_dropout=sample_dropout,
        key=key,
    )


def identity(x: Float[Array, "n *in"]) -> Float[Array, "n *in"]:
    """Vectors are their own features."""
    return x
