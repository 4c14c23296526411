"""The three functions of a neural process, and what can be reported beside them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from metakit._episode import Episode, Examples, MaskedExamples, require_one_input
from metakit._normal import Normal
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.random import require_key

from ._learner import NeuralProcess


class Adapted(eqx.Module):
    """What `adapt` learnt of one task.

    - `x`, `mask`: the context's inputs `[n, in]`, and which of them are real.
    - `values`: the context's representations $r_i$, `[n, d]`; `None` without a deterministic path.
    - `latent`: $q(z | S)$, a `mk.Normal` of shape `[size]`; `None` without a latent path.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, latent=True, width=16, latent_size=4, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves()(jax.random.key(1))
    >>> mk.neural_process.adapt(learner, episode.support).latent.shape
    (4,)
    """

    learner: NeuralProcess
    x: Float[Array, "n in"]
    mask: Bool[Array, " n"]
    values: Float[Array, "n d"] | None
    latent: Normal | None


@typed
def adapt(learner: NeuralProcess, support: Examples | MaskedExamples, key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task: encode its support set, here called the context.

    $$r_i = h(x_i, y_i), \qquad q(z \mid S)$$

    **Arguments:**

    - `learner`: a `NeuralProcess`.
    - `support`: real targets, `x` `[n, in]` and `y` `[n, out]`; a `MaskedExamples` where the number of points varies
      from task to task. Not even one of them need be real.
    - `key`: accepted and not used; `predict` draws $z$.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when `x` or `y` has another shape or dtype.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, width=16, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves(shot=5)(jax.random.key(1))
    >>> mk.neural_process.adapt(learner, episode.support).values.shape
    (5, 16)
    """
    del key
    x, y, mask = _points(learner, support, "support")
    pairs = jnp.concatenate([learner.read(x), y], axis=1)
    latent = None if learner.latent is None else learner.latent(pairs, mask)
    return _adapted(learner, x, pairs, mask, latent)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Normal:
    r"""The distribution of each target, on its own.

    $$p(y_*) = N(\mu, \sigma^2), \qquad (\mu, s) = g(r_*, z, x_*), \qquad \sigma \ge \sigma_0$$

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: `[query, in]`.
    - `key`: of the draw $z \sim q(z \mid S)$; needed with a latent path, not used without. The same key gives the same
      function in every call; several keys give several of the functions that the support set allows.

    **Returns:** a `mk.Normal` of shape `[query, out]`. Score it with `mk.metrics.log_density`, or its mean alone with
    `mk.metrics.mean_squared_error`; both work in `mk.evaluate.scores`.

    **Raises:** `ValueError` when `x` has another shape or dtype, or the key is missing.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, width=16, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves()(jax.random.key(1))
    >>> prediction = mk.neural_process.predict(mk.neural_process.adapt(learner, episode.support), episode.query.x)
    >>> prediction.shape, bool((prediction.scale >= 0.1).all())
    ((9, 1), True)
    """
    learner = adapted.learner
    _require(x, (learner.in_size,), adapted.x.dtype, "x")
    z = None if adapted.latent is None else adapted.latent.sample(require_key(key, "a latent NeuralProcess", "predict"))
    return _decode(adapted, x, z)


@typed
def meta_loss(learner: NeuralProcess, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""Minus the bound on the log-density of all targets, per target.

    $$-\frac1{|T|} \Bigl( \sum_{i \in T} \log p(y_i \mid x_i, r_*, z) - \mathrm{KL}\bigl(q(z \mid T)\,\|\,q(z \mid S)
    \bigr) \Bigr), \qquad z \sim q(z \mid T), \quad T = S \cup Q$$

    The targets contain the context, as published; that trains the decoder to return to the points it was shown. Without
    a latent path there is neither $z$ nor KL, and the loss is not random.

    **Arguments:**

    - `learner`: a `NeuralProcess`.
    - `task`: an `Episode` of real targets, the support masked or not.
    - `key`: of the draw of $z$; needed with a latent path, not used without.

    **Returns:** a scalar, in nats per target.

    **Raises:** what `adapt` raises, for support and query; `ValueError` when the key is missing.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, latent=True, width=16, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves()(jax.random.key(1))
    >>> mk.neural_process.meta_loss(learner, episode, jax.random.key(2)).shape
    ()
    """
    terms = _terms(learner, task, key)
    density = jnp.sum(terms.nats) - terms.kl
    return -density / jnp.sum(terms.mask.astype(density.dtype))


class Diagnostics(eqx.Module):
    """What the loss of one task is made of, in nats.

    - `context_log_density`: mean over the support set, of points that the learner was shown.
    - `target_log_density`: mean over the query set, of new points. With a latent path, $z$ has seen these targets.
    - `kl`: from $q(z | S)$ to $q(z | S, Q)$, in all; 0 without a latent path.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, width=16, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves()(jax.random.key(1))
    >>> float(mk.neural_process.diagnostics(learner, episode).kl)
    0.0
    """

    context_log_density: Scalar
    target_log_density: Scalar
    kl: Scalar


@typed
def diagnostics(learner: NeuralProcess, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """The terms of the loss of one task.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`. The held-out figure, where $z$ has seen the support set alone, is
    `mk.evaluate.scores` with `mk.metrics.log_density`.

    **Raises:** what `meta_loss` raises.

    >>> import jax, metakit as mk
    >>> learner = mk.neural_process.NeuralProcess(1, 1, latent=True, width=16, key=jax.random.key(0))
    >>> episode = mk.tasks.GaussianProcessCurves()(jax.random.key(1))
    >>> bool(mk.neural_process.diagnostics(learner, episode, jax.random.key(2)).kl > 0)
    True
    """
    terms = _terms(learner, task, key)
    n = task.support.x.shape[0]

    def mean(part: slice) -> Scalar:
        number = jnp.sum(terms.mask[part].astype(terms.nats.dtype))
        return jnp.sum(terms.nats[part]) / jnp.maximum(number, jnp.ones_like(number))

    return Diagnostics(context_log_density=mean(slice(n)), target_log_density=mean(slice(n, None)), kl=terms.kl)


class _Terms(eqx.Module):
    nats: Float[Array, " targets"]  # 0 where a target is padding
    mask: Bool[Array, " targets"]
    kl: Scalar


def _terms(learner: NeuralProcess, task: Episode, key: PRNGKey | None) -> _Terms:
    context_x, context_y, in_context = _points(learner, task.support, "support")
    new_x, new_y, all_new = _points(learner, task.query, "query")
    x, y = jnp.concatenate([context_x, new_x]), jnp.concatenate([context_y, new_y])
    pairs, n = jnp.concatenate([learner.read(x), y], axis=1), len(context_x)
    is_context, is_target = jnp.concatenate([in_context, ~all_new]), jnp.concatenate([in_context, all_new])
    z, kl, prior = None, jnp.zeros((), pairs.dtype), None
    if learner.latent is not None:
        # Both sets go through the encoder once: one is part of the other.
        encoded = learner.latent.encoder(pairs)
        prior, posterior = learner.latent.pooled(encoded, is_context), learner.latent.pooled(encoded, is_target)
        z = posterior.sample(require_key(key, "a latent NeuralProcess", "meta_loss"))
        kl = jnp.sum(posterior.kl(prior))
    prediction = _decode(_adapted(learner, context_x, pairs[:n], in_context, prior), x, z)
    nats = jnp.sum(prediction.log_density(y), axis=1)
    return _Terms(jnp.where(is_target, nats, jnp.zeros_like(nats)), is_target, kl)


def _adapted(
    learner: NeuralProcess,
    x: Float[Array, "n in"],
    pairs: Float[Array, "n pair"],
    mask: Bool[Array, " n"],
    latent: Normal | None,
) -> Adapted:
    values = None if learner.encoder is None else learner.encoder(pairs)
    return Adapted(learner, x, mask, values, latent)


def _decode(adapted: Adapted, x: Float[Array, "query in"], z: Float[Array, " size"] | None) -> Normal:
    learner, inputs = adapted.learner, []
    if learner.attention is not None and adapted.values is not None:
        inputs.append(learner.attention(x, adapted.x, adapted.values, adapted.mask))
    if z is not None:
        inputs.append(jnp.broadcast_to(z[None], (x.shape[0], z.shape[0])))
    mean, raw = jnp.split(learner.decoder(jnp.concatenate([*inputs, learner.read(x)], axis=1)), 2, axis=1)
    least = learner.min_scale.value.astype(raw.dtype)
    return Normal(mean, least + (1 - least) * jax.nn.softplus(raw))


def _points(
    learner: NeuralProcess, examples: Examples | MaskedExamples, name: str
) -> tuple[Float[Array, "n in"], Float[Array, "n out"], Bool[Array, " n"]]:
    """Inputs and targets, zero where they are padding, and which points are real."""
    require_one_input(examples, "a NeuralProcess", name)
    x, y = examples.x, examples.y
    _require(x, (learner.in_size,), x.dtype, f"{name}.x")
    _require(y, (learner.out_size,), x.dtype, f"{name}.y")
    if not isinstance(examples, MaskedExamples):
        return x, y, jnp.ones(x.shape[0], bool)
    # Further on padding is multiplied by zero, which does not get rid of what is not finite.
    real = examples.mask[:, None]
    return jnp.where(real, x, jnp.zeros_like(x)), jnp.where(real, y, jnp.zeros_like(y)), examples.mask


def _require(array: Shaped[Array, "n *any"], shape: tuple[int, ...], dtype: jnp.dtype, name: str) -> None:
    if array.shape[1:] != shape or array.dtype != dtype or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name} must be [n, {shape[0]}] real numbers of one dtype for this NeuralProcess, got "
            f"{array.dtype}{list(array.shape)}. Build it with the features of the data, give a single number per point "
            "an axis by [:, None], and map over a batch of tasks with eqx.filter_vmap."
        )
