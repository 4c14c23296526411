"""MetaGAN's three functions, its generator's draws, and what can be reported beside them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from metakit import losses
from metakit._episode import Episode, Examples
from metakit._hyperparameter import held
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.learners._labels import membership, require_labels

from ._learner import Adapted, MetaGAN
from ._loss import real_and_fake


@typed
def generate(
    learner: MetaGAN, support: Examples, key: PRNGKey | None, *, num_fakes: int
) -> Shaped[Array, "num_fakes *in"]:
    r"""Draw fakes for a task.

    $$\tilde x = G\Bigl(z,\, \frac1n \sum_{i=1}^n e(x_i)\Bigr), \qquad z \sim \mathcal N(0, I)$$

    **Arguments:** `learner`; `support`, whose inputs are the task; `key`; `num_fakes`, static, at least 1.

    **Returns:** `[num_fakes, *in]`, of the shape and dtype of the support's examples.

    **Raises:** `ValueError` without a key, for `num_fakes` below 1, when the encoder does not return `[n, code]`, or
    when the generator's examples are not like the support's.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=2, adapt_to_fakes=False)
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.metagan.generate(learner, support, jax.random.key(0), num_fakes=7).shape
    (7, 2)
    """
    if key is None:
        raise ValueError("MetaGAN draws fakes at random and needs a key: meta_loss(learner, task, key).")
    if num_fakes < 1:
        raise ValueError(f"num_fakes must be at least 1, got {num_fakes}.")
    codes = learner.encoder(support.x)
    if codes.ndim != 2 or codes.shape[0] != support.x.shape[0]:
        raise ValueError(
            f"encoder must map {support.x.shape[0]} examples to codes [{support.x.shape[0]}, code], got shape "
            f"{list(codes.shape)}. Flatten feature maps (features.reshape(len(x), -1))."
        )
    code = jnp.mean(codes, axis=0)
    noise = jax.random.normal(key, (num_fakes, learner.noise_size), code.dtype)
    fakes = learner.generator(
        jnp.concatenate([noise, jnp.broadcast_to(code[None], (num_fakes, code.shape[0]))], axis=1)
    )
    expected = (num_fakes, *support.x.shape[1:])
    if fakes.shape != expected or fakes.dtype != support.x.dtype:
        raise ValueError(
            f"generator must return examples like the support's, {support.x.dtype}{list(expected)}, got "
            f"{fakes.dtype}{list(fakes.shape)}. It is called with [{num_fakes}, noise_size + code] = "
            f"[{num_fakes}, {learner.noise_size} + {code.shape[0]}] numbers."
        )
    return fakes


@typed
def adapt(learner: MetaGAN, support: Examples, key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task as the base learner does, and where the learner says so on fakes as well.

    $$\phi_D = \operatorname{adapt}_D(S) \quad\text{or}\quad \phi_D = \operatorname{adapt}_D(S \cup \{(\tilde x, N)\})$$

    **Arguments:**

    - `learner`: a `MetaGAN`.
    - `support`: labelled examples with `way`.
    - `key`: draws the fakes, and is passed on to the base learner; not needed where neither is random.

    **Returns:** an `Adapted` for `predict`. No gradient reaches the generator through it.

    **Raises:** `ValueError` when labels or their `way` are missing, when fakes are to be drawn without a key, and what
    the base learner's `adapt` raises.

    >>> import jax.numpy as jnp, metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=2, adapt_to_fakes=False)
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.metagan.predict(mk.metagan.adapt(learner, support), jnp.zeros((1, 2))).round().tolist()
    [[-1.0, -1.0]]
    """
    way = require_labels(support, "MetaGAN")
    base, fake_key, base_key = learner.base, key, key
    if learner.adapt_to_fakes:
        base = eqx.tree_at(lambda b: b.loss, base, learner.loss)
        if key is not None:
            fake_key, base_key = jax.random.split(key)
        # The label that marks a fake must not be one that a wrong label can be.
        labels = jnp.where(jnp.any(membership(support.y, way), axis=1), support.y, -jnp.ones_like(support.y))
        support = Examples(support.x, labels, way=way)
        count = _count(learner, support)
        if count > 0:
            fakes = held(generate(learner, support, fake_key, num_fakes=count))
            marks = jnp.full((count,), way, support.y.dtype)
            support = Examples(jnp.concatenate([support.x, fakes]), jnp.concatenate([support.y, marks]), way=way)
    return Adapted(learner.algorithm, learner.algorithm.adapt(base, support, base_key))


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    """The base learner's predictions; the class of fakes is left out.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`.
    - `key`: passed on to the base learner.

    **Returns:** logits of the `way` classes, `[query, way]`; `real_and_fake` reads off them how real each query looks.

    **Raises:** what the base learner's `predict` raises.

    >>> import jax.numpy as jnp, metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=2, adapt_to_fakes=False)
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.metagan.predict(mk.metagan.adapt(learner, support), jnp.zeros((3, 2))).shape
    (3, 2)
    """
    return adapted.algorithm.predict(adapted.base, x, key)


@typed
def meta_loss(learner: MetaGAN, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""Both players' losses after adaptation in one scalar, whose gradient is each player's own.

    $$L_D(\theta_D;\, \operatorname{sg}\theta_G) + L_G(\theta_G;\, \operatorname{sg}\theta_D), \qquad
      L_G = -\mathbb E_{\tilde x} \log p(y < N \mid \tilde x)$$

    with $\operatorname{sg}$ for "held constant". So its gradient with respect to the base learner is that of the
    discriminator's loss, and with respect to generator and encoder that of the generator's.

    **Arguments:**

    - `learner`: a `MetaGAN`.
    - `task`: an `Episode` of labelled examples with `way`. The queries are also the unlabelled examples.
    - `key`: draws the fakes.

    **Returns:** a scalar, the sum of the two losses. It measures no performance, since while one player wins the other
    loses: see `diagnostics`.

    **Raises:** `ValueError` without a key (unless there are no fakes), when labels or their `way` are missing, and what
    the base learner raises.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=2, adapt_to_fakes=False)
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.metagan.meta_loss(learner, mk.Episode(examples, examples), jax.random.key(0)).shape
    ()
    """
    of_discriminator, of_generator, _, _ = _play(learner, task, key)
    return of_discriminator + of_generator


class Diagnostics(eqx.Module):
    """How the two players do on one task.

    - `classification_loss`: mean cross-entropy of the queries among the classes, the base learner's loss.
    - `discriminator_loss`, `generator_loss`: whose sum is the meta-loss; the second is 0 without fakes.
    - `real_accuracy`, `fake_accuracy`: which part of the queries and of the fakes the classifier tells right, at even
      odds; NaN for the fakes where there are none. Both near 1 is a beaten generator; their mean near 1/2 a beaten
      discriminator.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=2, adapt_to_fakes=False)
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> float(mk.metagan.diagnostics(learner, mk.Episode(examples, examples), jax.random.key(0)).real_accuracy)
    1.0
    """

    classification_loss: Scalar
    discriminator_loss: Scalar
    generator_loss: Scalar
    real_accuracy: Scalar
    fake_accuracy: Scalar


@typed
def diagnostics(learner: MetaGAN, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """The losses of both players on one task, and who wins.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`.

    **Raises:** `ValueError` as `meta_loss`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=2, adapt_to_fakes=False)
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.metagan.diagnostics(learner, mk.Episode(examples, examples), jax.random.key(0)).generator_loss.shape
    ()
    """
    of_discriminator, of_generator, real, fake = _play(learner, task, key)
    return Diagnostics(
        classification_loss=losses.cross_entropy(real, task.query.y, reduction="mean"),
        discriminator_loss=of_discriminator,
        generator_loss=of_generator,
        real_accuracy=_share(learner, real, real_is_right=True),
        fake_accuracy=jnp.full_like(of_generator, jnp.nan)
        if fake is None
        else _share(learner, fake, real_is_right=False),
    )


def _play(
    learner: MetaGAN, task: Episode, key: PRNGKey | None
) -> tuple[Scalar, Scalar, Float[Array, "query way"], Float[Array, "fakes way"] | None]:
    """The two losses, and the adapted classifier's logits for queries and fakes."""
    way = require_labels(task.query, "MetaGAN", name="query")
    adapt_key = fake_key = real_predict_key = fake_predict_key = None
    if key is not None:
        adapt_key, fake_key, real_predict_key, fake_predict_key = jax.random.split(key, 4)
    adapted = adapt(learner, task.support, adapt_key)
    real = predict(adapted, task.query.x, real_predict_key)
    inside = jnp.any(membership(task.query.y, way), axis=1)
    labels = jnp.where(inside, task.query.y, -jnp.ones_like(task.query.y))  # a wrong label must not mark a fake
    count = _count(learner, task.query)
    if count == 0:
        alone = learner.loss(real, labels, reduction="mean")
        return alone, jnp.zeros_like(alone), real, None

    fakes = generate(learner, task.support, fake_key, num_fakes=count)
    fake = predict(adapted, held(fakes), fake_predict_key)
    marks = jnp.full((count,), way, labels.dtype)
    of_discriminator = learner.loss(jnp.concatenate([real, fake]), jnp.concatenate([labels, marks]), reduction="mean")
    seen = predict(held(adapted), fakes, fake_predict_key)
    log_real, _ = real_and_fake(seen, held(learner.loss.offset.value).astype(seen.dtype))
    return of_discriminator, -jnp.mean(log_real), real, fake


def _count(learner: MetaGAN, real: Examples) -> int:
    return real.x.shape[0] if learner.num_fakes is None else learner.num_fakes


def _share(learner: MetaGAN, logits: Float[Array, "n way"], *, real_is_right: bool) -> Scalar:
    log_real, log_fake = real_and_fake(logits, learner.loss.offset.value.astype(logits.dtype))
    right = log_real > log_fake if real_is_right else log_real <= log_fake
    return jnp.mean(right.astype(logits.dtype))
