"""The generative learners at their start, and how they are trained and tested."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from metakit import nn
from metakit._algorithm import Algorithm
from metakit._hyperparameter import learned
from metakit.learners import maml, metagan, neural_process, prototypical, statistician
from metakit.tasks import Episodes, ImagePool

from ._config import Settings
from ._learners import Build, adapted_at_length, channels_and_size, embedding, maml_like


def statistician_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """A quarter of the published filters and of the context, for time.

    Half of each set is hidden from its summary: what is left in it is what the set's images share, and with one shot
    the test's sets are no smaller than those seen."""
    del settings
    channels, size = channels_and_size(pool)
    options = {"filters": 16, "context_size": 128, "sample_dropout": 0.5}
    return statistician.of_images(channels, size, **options, key=key)


def statistician_schedule(settings: Settings) -> Callable[[Any, Any], Any]:
    """Reconstruction weighs more at first, for a few hundredths of the training, as published."""
    return eqx.Partial(statistician.anneal_emphasis, halve_every=max(settings.steps // 100, 1))


# As many training sets as batch norm's statistics are fixed on for a test.
_SETS = 200
_freeze = eqx.filter_jit(statistician.freeze_statistics)


def statistician_as_tested(settings: Settings, learner: Any, pool: ImagePool | None) -> Any:
    """Batch norm with the statistics of training sets."""
    assert pool is not None
    sets_key, key = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), 4))
    sets = Episodes(pool, min(_SETS, len(pool.names)), settings.shot, settings.queries)
    return _freeze(learner, sets(sets_key), key)


def neural_process_learner(**options: Any) -> Build:
    """A neural process of curves, with the published widths."""

    def build(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
        del settings, pool
        return neural_process.NeuralProcess(1, 1, **options, key=key)

    return build


_NOISE = 100
_CODE_WIDTH = 16


def metagan_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """Telling fakes apart weighs a fifth of telling classes apart: with equal weights, and a generator at a tenth of
    the classifier's rate, it ended below Prototypical Networks (docs/results.md). The offset is there because the
    logits of Prototypical Networks are never positive."""
    base_key, *keys = jax.random.split(key, 3)
    embed, _ = embedding(pool, base_key)
    base = prototypical.Prototypical(embed, norm_policy=settings.norm_policy)
    loss = metagan.DiscriminatorLoss(unlabelled_weight=0.2, fake_weight=0.2, offset=learned(5.0))
    return _against_a_generator(prototypical, base, settings, pool, *keys, adapt_to_fakes=False, loss=loss)


def metagan_maml_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """The published form. The weights are those over Prototypical Networks; no others were tried."""
    base_key, *keys = jax.random.split(key, 3)
    base = maml_like(maml.MAML, learns_rates=False)(settings, pool, base_key)
    loss = metagan.DiscriminatorLoss(unlabelled_weight=0.2, fake_weight=0.2)
    return _against_a_generator(maml, base, settings, pool, *keys, adapt_to_fakes=True, loss=loss)


def _against_a_generator(
    algorithm: Algorithm,
    base: Any,
    settings: Settings,
    pool: ImagePool | None,
    generator_key: jax.Array,
    encoder_key: jax.Array,
    **options: Any,
) -> Any:
    """One fake for each class, for time: over Prototypical Networks as many as there are queries make a step twice as
    slow."""
    channels, size = channels_and_size(pool)
    code = _CODE_WIDTH * (size // 16) ** 2
    return metagan.MetaGAN(
        algorithm,
        base,
        generator=nn.ImageGenerator(_NOISE + code, channels, size, key=generator_key),
        encoder=nn.Conv4(channels, size, width=_CODE_WIDTH, key=encoder_key),
        noise_size=_NOISE,
        num_fakes=settings.way,
        **options,
    )


def metagan_with_num_steps(learner: Any, num_steps: int) -> Any:
    """The steps of its base, MAML."""
    return dataclasses.replace(learner, base=maml.with_num_steps(learner.base, num_steps))


def metagan_adapted_at_length(settings: Settings, learner: Any) -> tuple[str, Any]:
    """As MAML's, without fakes: their generator was not trained either."""
    what, base = adapted_at_length(settings, learner.base)
    return f"{what}, without fakes", metagan.without_generator(dataclasses.replace(learner, base=base))
