"""The statistics of a statistician's batch norms, fixed on training sets."""

import equinox as eqx

from metakit import nn
from metakit._episode import Episode
from metakit._typecheck import typed
from metakit._types import PRNGKey

from ._functions import Diagnostics, diagnostics
from ._learner import Statistician


class _Training(eqx.Module):
    """What runs every network of a learner once, as training does."""

    learner: Statistician

    def __call__(self, batch: tuple[Episode, PRNGKey | None]) -> Diagnostics:
        return diagnostics(self.learner, *batch)


@typed
def freeze_statistics(learner: Statistician, task: Episode, key: PRNGKey | None = None) -> Statistician:
    """A copy of the learner in which every batch norm keeps the statistics that it has on one task.

    The task is one of training, with many sets: its statistics then stand for running ones, without any state. Every
    set of a test is encoded with them, whatever its size, and no query sees another.

    **Arguments:**

    - `learner`: a `Statistician`; nothing of it is changed.
    - `task`: an `Episode`, as for `meta_loss`; a few hundred sets of the size that the learner was trained on.
    - `key`: of the draws of the bound, as for `meta_loss`; needed.

    **Returns:** a `Statistician`. Training goes on with the learner that was given, not with this one.

    **Raises:** what `meta_loss` raises; `ValueError` when no network has a `mk.nn.BatchStatNorm`, or when one is called
    in a way that hides its statistics (see `mk.nn.freeze_statistics`).

    >>> import jax, metakit as mk
    >>> learner = mk.statistician.of_vectors(4, width=16, norm=mk.nn.BatchStatNorm, key=jax.random.key(0))
    >>> examples = mk.Examples(jax.random.normal(jax.random.key(1), (6, 4)), [0, 0, 1, 1, 2, 2], way=3)
    >>> task = mk.Episode(examples, examples)
    >>> fixed = mk.statistician.freeze_statistics(learner, task, jax.random.key(2))
    >>> mk.statistician.predict(mk.statistician.adapt(fixed, examples), examples.x).shape
    (6, 3)
    """
    return nn.freeze_statistics(_Training(learner), (task, key)).learner
