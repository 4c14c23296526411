"""The three functions of the Neural Statistician, and what can be reported beside them."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from metakit._episode import Episode, Examples
from metakit._normal import Normal
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.learners._labels import membership, nan_unless_classes, require_labels
from metakit.nn import BatchStatNorm
from metakit.random import require_key

from ._learner import Statistician

_LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE = -4.0, 3.0


class Adapted(eqx.Module):
    """What `adapt` learnt of one task.

    - `contexts`: $q(c | S_n)$ of each class, a `mk.Normal` of shape `[way, context_size]`.
    - `membership`: `[n, way]` Booleans, whose class each support example is.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> support = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> mk.statistician.adapt(learner, support).contexts.shape
    (3, 3)
    """

    learner: Statistician
    contexts: Normal
    membership: Bool[Array, "n way"]


@typed
def adapt(learner: Statistician, support: Examples, key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task: summarise each class's support examples by $q(c \mid S_n)$.

    **Arguments:**

    - `learner`: a `Statistician`.
    - `support`: labelled examples with `way`; shots may differ between classes. One set without labels is a single
      class: `Examples(x, zeros, way=1)`. A label outside `0..way-1` makes every prediction NaN; `mk.check_values`
      names it.
    - `key`: accepted and not used; nothing here is random.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when `support.way` is missing, when `support.y` is not `[n]` integers, when `encode`
    does not return `[n, features]`, or for a batch norm without fixed statistics.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> support = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> mk.statistician.adapt(learner, support).contexts.scale.shape
    (3, 3)
    """
    del key
    members = membership(support.y, require_labels(support, "Statistician"))
    _require_fixed_statistics(learner)
    return Adapted(learner, _statistic(learner, _encode(learner, support.x), members), members)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    r"""Score queries by how well a class's context fits the one that the query alone suggests.

    $$z_n(x) = -\mathrm{KL}\bigl(q(c \mid S_n)\,\|\,q(c \mid \{x\})\bigr)$$

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`; each is a set of its own.
    - `key`: accepted and not used.

    **Returns:** logits `[query, way]`, none above 0; minus infinity for a class without support examples. The paper
    takes the largest; as probabilities they are far too sure of themselves where the context has many dimensions.

    **Raises:** `ValueError` when `x` does not fit the networks.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> support = mk.Examples(jax.random.normal(jax.random.key(1), (2, 4)), [0, 1], way=2)
    >>> logits = mk.statistician.predict(mk.statistician.adapt(learner, support), support.x)
    >>> bool((abs(logits.diagonal()) < 1e-6).all())  # one shot: the class's set is the query's
    True

    **Source:** Edwards and Storkey 2017, *Towards a Neural Statistician*, https://arxiv.org/abs/1606.02185.
    """
    del key
    features = _encode(adapted.learner, x)
    alone = _statistic(adapted.learner, features, jnp.eye(features.shape[0], dtype=bool))
    classes, query = (
        jax.tree.map(lambda leaf, axis=axis: jnp.expand_dims(leaf, axis), part)
        for axis, part in ((0, adapted.contexts), (1, alone))
    )
    logits = -jnp.sum(classes.kl(query), axis=-1)
    present = jnp.any(adapted.membership, axis=0)
    logits = jnp.where(present[None], logits, jnp.full_like(logits, -jnp.inf))
    return nan_unless_classes(logits, adapted.membership)


@typed
def meta_loss(learner: Statistician, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""Minus the bound on the log-density of the task's sets, per example.

    $$-\frac1N \Bigl( (1 + \alpha) \sum_n R_n - \frac{1}{1 + \alpha} \sum_n K_n \Bigr)$$

    with $R_n$ the reconstruction and $K_n$ the divergences of class $n$'s set, its support *and* query examples: the
    statistician learns sets, not episodes, and labels only say which set an example belongs to.

    **Arguments:**

    - `learner`: a `Statistician`; $\alpha$ is its `emphasis`.
    - `task`: an `Episode` of labelled examples with `way`. Its sets have shot + queries examples.
    - `key`: of the draws of contexts and latents; needed.

    **Returns:** a scalar, in nats per example; NaN for a label outside `0..way-1`.

    **Raises:** what `adapt` raises, for support and query; `ValueError` when the key is missing or `decode` returns
    another shape than its likelihood needs.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> examples = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> mk.statistician.meta_loss(learner, mk.Episode(examples, examples), jax.random.key(2)).shape
    ()
    """
    terms = diagnostics(learner, task, key)
    emphasis = 1 + learner.emphasis.value.astype(terms.reconstruction.dtype)
    return (terms.context_kl + terms.latent_kl) / emphasis - emphasis * terms.reconstruction


class Diagnostics(eqx.Module):
    """What the bound of one task is made of, in nats per example.

    - `reconstruction`: log-density of the examples under their own latents and context.
    - `context_kl`: divergence of the sets' contexts from their prior, shared out over the examples.
    - `latent_kl`: divergence of the examples' latents from their priors.

    The bound is the first minus the other two.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> examples = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> terms = mk.statistician.diagnostics(learner, mk.Episode(examples, examples), jax.random.key(2))
    >>> bool(terms.context_kl > 0) and bool(terms.latent_kl > 0)
    True
    """

    reconstruction: Scalar
    context_kl: Scalar
    latent_kl: Scalar


@typed
def diagnostics(learner: Statistician, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """The terms of the bound of one task.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`.

    **Raises:** what `meta_loss` raises.

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, key=jax.random.key(0))
    >>> examples = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> task, key = mk.Episode(examples, examples), jax.random.key(2)
    >>> terms, loss = mk.statistician.diagnostics(learner, task, key), mk.statistician.meta_loss(learner, task, key)
    >>> bool(abs(loss - (terms.context_kl + terms.latent_kl - terms.reconstruction)) < 1e-4)
    True
    """
    way = require_labels(task.support, "Statistician")
    require_labels(task.query, "Statistician", name="query")
    _require_real(task.support.x, "support.x")
    x, y = jnp.concatenate([task.support.x, task.query.x]), jnp.concatenate([task.support.y, task.query.y])
    context_key, latent_key, keep_key = jax.random.split(require_key(key, "Statistician", "meta_loss"), 3)
    shape = (len(learner.inference), x.shape[0], learner.latent_size)
    members = membership(y, way)
    noise = _Noise(
        context=jax.random.normal(context_key, (way, learner.context_size), x.dtype),
        latents=jax.random.normal(latent_key, shape, x.dtype),
    )
    left_out = jax.random.uniform(keep_key, y.shape, x.dtype) < learner.sample_dropout.value.astype(x.dtype)
    terms = bound(learner, x, members, _without(members, left_out), noise)
    # Compiled code cannot raise: a label that is no class shows in every term.
    fine = jnp.all(jnp.any(members, axis=1))
    return jax.tree.map(lambda term: jnp.where(fine, term, jnp.full_like(term, jnp.nan)), terms)


class _Noise(NamedTuple):
    context: Float[Array, "way size"]
    latents: Float[Array, "layers n size"]


def bound(
    learner: Statistician,
    x: Shaped[Array, "n *in"],
    members: Bool[Array, "n way"],
    summarised: Bool[Array, "n way"],
    noise: _Noise,
) -> Diagnostics:
    """The terms of the bound, its expectations taken at one draw of standard normal noise."""
    features = _encode(learner, x)
    contexts = _statistic(learner, features, summarised)
    standard = Normal(jnp.zeros_like(contexts.mean), jnp.ones_like(contexts.scale))
    set_kl = jnp.sum(contexts.kl(standard), axis=1)
    context_kl = jnp.sum(jnp.where(jnp.any(members, axis=0), set_kl, jnp.zeros_like(set_kl)))

    draws = contexts.mean + contexts.scale * noise.context
    context = jnp.take(draws, jnp.argmax(members, axis=1), axis=0)
    above, latents, latent_kl = context, [], jnp.zeros((), features.dtype)
    for inference, prior, own_noise in zip(learner.inference, learner.prior, noise.latents, strict=True):
        posterior = _normal(inference(jnp.concatenate([features, above], axis=1)))
        latent_kl = latent_kl + jnp.sum(posterior.kl(_normal(prior(above))))
        latents.append(posterior.mean + posterior.scale * own_noise)
        above = jnp.concatenate([context, latents[-1]], axis=1)
    parameters = learner.decode(jnp.concatenate([*latents, context], axis=1))
    nats, n = _log_likelihood(learner, parameters, x), x.shape[0]
    return Diagnostics(jnp.mean(nats), context_kl / n, latent_kl / n)


def _require_real(x: Shaped[Array, "n *in"], name: str) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must hold real numbers, got {x.dtype}{list(x.shape)}. Convert it with x.astype('float32'), and "
            "divide pixels by 255: the Bernoulli likelihood is one of numbers in 0..1."
        )


def _require_fixed_statistics(learner: Statistician) -> None:
    """A class and a query are compared by networks that must not differ between them."""
    networks = (learner.encode, learner.before_pooling, learner.after_pooling)
    nodes = jax.tree.leaves(networks, is_leaf=lambda node: isinstance(node, BatchStatNorm))
    if any(isinstance(node, BatchStatNorm) and node.statistics is None for node in nodes):
        raise ValueError(
            "the learner's BatchStatNorm layers would take the statistics of the support set for a class, and of the "
            "queries for a query, whose contexts could not be compared. Fix them on training sets first: "
            "mk.statistician.freeze_statistics(learner, task, key)."
        )


def _encode(learner: Statistician, x: Shaped[Array, "n *in"]) -> Float[Array, "n features"]:
    _require_real(x, "x")
    features: Any = learner.encode(x)
    if features.ndim != 2 or features.shape[0] != x.shape[0]:
        raise ValueError(
            f"encode must map a batch of {x.shape[0]} examples to features [{x.shape[0]}, d], got shape "
            f"{list(features.shape)} for x{list(x.shape)}. Use of_images for images; one query still needs the leading "
            "axis: x[None]."
        )
    return features


def _statistic(learner: Statistician, features: Float[Array, "n f"], members: Bool[Array, "n sets"]) -> Normal:
    """q(c | D) of each set; an empty one has the summary of a zero mean."""
    hidden = learner.before_pooling(features)
    weights = members.astype(hidden.dtype)
    counts = jnp.sum(weights, axis=0)
    sums = jnp.matmul(weights.T, hidden, precision=jax.lax.Precision.HIGHEST)
    return _normal(learner.after_pooling(sums / jnp.maximum(counts, jnp.ones_like(counts))[:, None]))


def _normal(parameters: Float[Array, "n two_d"]) -> Normal:
    mean, log_variance = jnp.split(parameters, 2, axis=1)
    return Normal(mean, jnp.exp(0.5 * jnp.clip(log_variance, _LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE)))


def _without(members: Bool[Array, "n way"], left_out: Bool[Array, " n"]) -> Bool[Array, "n way"]:
    """The members of each set that are left; all of them where none would be."""
    rest = members & ~left_out[:, None]
    return jnp.where(jnp.any(rest, axis=0)[None], rest, members)


def _log_likelihood(learner: Statistician, parameters: Array, x: Shaped[Array, "n *in"]) -> Float[Array, " n"]:
    gaussian = learner.likelihood == "gaussian"
    expected = (*x.shape, 2) if gaussian else x.shape
    if parameters.shape != expected:
        raise ValueError(
            f"decode must return {list(expected)} for x{list(x.shape)} and likelihood={learner.likelihood!r}, got "
            f"{list(parameters.shape)}."
        )
    if gaussian:
        mean, log_scale = parameters[..., 0], parameters[..., 1]
        log_scale = jnp.clip(log_scale, 0.5 * _LEAST_LOG_VARIANCE, 0.5 * _MOST_LOG_VARIANCE)
        half_log_two_pi = jnp.asarray(0.5 * math.log(2 * math.pi), mean.dtype)
        nats = -half_log_two_pi - log_scale - 0.5 * jnp.square((x - mean) * jnp.exp(-log_scale))
    else:
        # x log p + (1 - x) log(1 - p) of a pixel's probability p = sigmoid(logit).
        nats = x * parameters - jax.nn.softplus(parameters)
    return jnp.sum(nats.reshape(x.shape[0], -1), axis=1)
