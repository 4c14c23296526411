"""What a meta-learning algorithm is: a namespace that holds three pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ._wording import describe, uncalled


@runtime_checkable
class Algorithm(Protocol):
    """Three pure functions on *one* task; everything in metakit composes them and knows no family.

    - `adapt(learner, support, key=None) -> adapted`: learn one task from its support set.
    - `predict(adapted, x, key=None) -> y`: use what was learnt; logits `[n, way]` for classes, `[n, *out]` for values.
    - `meta_loss(learner, task, key=None) -> scalar`: how good was that adaptation?

    A module satisfies this protocol (`mk.maml`, or your own `my_learner.py`), and so does a `MetaLearner`.

    >>> import metakit as mk
    >>> isinstance(mk.maml, mk.Algorithm)
    True
    """

    @property
    def adapt(self) -> Callable[..., Any]: ...

    @property
    def predict(self) -> Callable[..., Any]: ...

    @property
    def meta_loss(self) -> Callable[..., Any]: ...


class MetaLearner(NamedTuple):
    """An algorithm made on the spot from three functions.

    **Arguments:** `adapt`, `predict` and `meta_loss`, with the signatures of `Algorithm`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mean = mk.MetaLearner(
    ...     adapt=lambda learner, support, key=None: support.y.mean(0),
    ...     predict=lambda adapted, x, key=None: jnp.broadcast_to(adapted, (len(x), *adapted.shape)),
    ...     meta_loss=lambda learner, task, key=None: jnp.mean((task.query.y - task.support.y.mean(0)) ** 2),
    ... )
    >>> isinstance(mean, mk.Algorithm)
    True
    """

    adapt: Callable[..., Any]
    predict: Callable[..., Any]
    meta_loss: Callable[..., Any]


def require_sampler(sampler: Any) -> None:
    """A `TypeError` for a sampler's class: called with a key it would make another sampler, not a task.

    A class of *tasks* is a sampler, if a key makes one.
    """
    if isinstance(sampler, type) and any("__call__" in vars(base) for base in sampler.__mro__):
        raise TypeError(
            f"sampler must be a function sampler(key) -> task, got {describe(sampler)}. {uncalled(sampler)}"
        )


def require_algorithm(algorithm: Any) -> None:
    """A `TypeError` for something that is no algorithm; usually it is a learner."""
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"algorithm must hold adapt, predict and meta_loss, got {describe(algorithm)}. Pass a module such as "
            "mk.maml, or mk.MetaLearner(adapt, predict, meta_loss), not a learner."
        )
