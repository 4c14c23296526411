"""The generative learners at their start, and how they are trained and tested."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from metakit.learners import neural_process, statistician
from metakit.tasks import Episodes, ImagePool

from ._config import Settings
from ._learners import Build, channels_and_size


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
