"""Bad inputs: an error, or a loss that is no number; never a plausible loss."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from metakit._episode import Episode, MaskedExamples
from metakit._wording import describe

from ._outcome import CheckFailed, CheckSkipped, check_of
from ._subject import Subject

_SHAPES = "Check x.ndim and x.shape[1:] in adapt and predict, and name them in a ValueError."

CHANGES: dict[str, Callable[[Any], Any]] = {
    "features": lambda x: jnp.concatenate([x, x], axis=1),
    "rank": lambda x: x.reshape(x.shape[0], -1)[:, 0],
    "dtype": lambda x: jnp.zeros(x.shape, "uint8"),
}


def _episode(subject: Subject) -> Episode:
    task = subject.task()
    if not isinstance(task, Episode):
        raise CheckSkipped(f"Its tasks are no episodes: sampler(key) is {describe(task)}.")
    if not eqx.is_array(task.query.x):
        raise CheckSkipped(f"Its inputs are no single array: query.x is {describe(task.query.x)}.")
    return task


def _changed(tree: Any, where: Callable[[Any], Any], change: Callable[[Any], Any]) -> Any:
    return eqx.tree_at(where, tree, replace_fn=change)


def _error_of(function: Callable[..., Any], *args: Any) -> str | None:
    """The message of the error that a call raises; `None` where it raises none."""
    try:
        function(*args)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


@check_of(_SHAPES)
def wrong_inputs_raise(subject: Subject, changes: tuple[str, ...] = ("features", "rank")) -> list[str]:
    """Inputs of another shape raise a `ValueError` or `TypeError`.

    Catches inputs that broadcast to a plausible loss. A learner without weights may be right to take any number of
    features, and one that converts pixels itself any dtype: leave that change out.

    **Arguments:**

    - `subject`: a `Subject`.
    - `changes`: of the inputs of both sets: `"features"` (twice as many along axis 1), `"rank"` (one number an
      example), `"dtype"` (raw uint8); default the first two.

    **Returns:** the messages of the errors.

    **Raises:** `CheckFailed`; `CheckSkipped` where tasks are no episodes.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> subject = mk.testing.Subject(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5))
    >>> messages = mk.testing.wrong_inputs_raise(subject)
    """
    messages = []
    for change in changes:
        task = _changed(_episode(subject), lambda t: (t.support.x, t.query.x), CHANGES[change])
        message = _error_of(subject.algorithm.meta_loss, subject.learner, task, subject.call_key())
        if message is None:
            raise CheckFailed(f"meta_loss takes inputs with a wrong {change}, {describe(task.query.x)}.", _SHAPES)
        messages.append(message)
    return messages


@check_of(_SHAPES)
def one_query_without_its_axis_raises(subject: Subject) -> None:
    """`predict(adapted, x[0])` raises a `ValueError` or `TypeError`.

    Catches a `predict` that takes channels or features for examples.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`; `CheckSkipped` where tasks are no episodes.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> subject = mk.testing.Subject(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5))
    >>> mk.testing.one_query_without_its_axis_raises(subject)
    """
    task, key = _episode(subject), subject.call_key()
    adapted = subject.algorithm.adapt(subject.learner, task.support, key)
    if _error_of(subject.algorithm.predict, adapted, task.query.x[0], key) is None:
        raise CheckFailed(f"predict takes one example without its axis, {describe(task.query.x[0])}.", _SHAPES)


@check_of("The caller maps: say so in a ValueError where x has an axis too many.")
def a_batch_of_tasks_is_refused(subject: Subject) -> str:
    """`meta_loss` of several tasks at once raises a `ValueError` or `TypeError`.

    Catches an axis of tasks that is taken for examples.

    **Arguments:** `subject`, a `Subject`.

    **Returns:** the message of the error.

    **Raises:** `CheckFailed`; `CheckSkipped` where tasks are no episodes.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> subject = mk.testing.Subject(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5))
    >>> messages = mk.testing.a_batch_of_tasks_is_refused(subject)
    """
    _episode(subject)
    message = _error_of(subject.algorithm.meta_loss, subject.learner, subject.tasks(3), subject.call_key())
    if message is None:
        raise CheckFailed(
            "meta_loss takes a batch of three tasks as if it were one.",
            "Refuse an axis too many, and say that eqx.filter_vmap maps over tasks.",
        )
    return message


@check_of("Use support.mask, or refuse what is no mk.Examples.")
def padding_is_refused_or_without_effect(subject: Subject) -> None:
    """The padding of `mk.MaskedExamples` raises an error, or changes nothing.

    Catches a learner that takes the padding for data, which gives a plausible loss.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`; `CheckSkipped` where tasks are no episodes.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> subject = mk.testing.Subject(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5))
    >>> mk.testing.padding_is_refused_or_without_effect(subject)
    """
    task, key = _episode(subject), subject.call_key()
    support, loss = task.support, subject.algorithm.meta_loss
    mask = support.mask if isinstance(support, MaskedExamples) else jnp.ones(len(support.x), bool)
    # One example more, far from all others, with a target of its own.
    x, y = (jnp.concatenate([part, 7 * part[:1] + 1]) for part in (support.x, support.y))
    y = y if support.way is None else y % support.way
    padded = MaskedExamples(x, y, jnp.append(mask, False), way=support.way)
    refused = [
        _error_of(subject.algorithm.adapt, subject.learner, padded, key) is not None,
        _error_of(loss, subject.learner, Episode(padded, task.query), key) is not None,
    ]
    if all(refused):
        return
    if any(refused):
        raise CheckFailed("One of adapt and meta_loss refuses a support set with padding, the other takes it.", _MASK)
    with_padding, without = loss(subject.learner, Episode(padded, task.query), key), loss(subject.learner, task, key)
    # Two programs of different shapes add up in another order.
    if not np.isclose(with_padding, without, rtol=10 * subject.rtol):
        raise CheckFailed(
            f"With one example of padding meta_loss is {float(with_padding):.6g} instead of {float(without):.6g}.",
            _MASK,
        )


_MASK = "Use support.mask, or refuse it: if not isinstance(support, mk.Examples): raise TypeError(...)."

_NOT_A_NUMBER = "Let it become NaN: a factor of NaN where a value is out of range, no jnp.clip, jnp.nan_to_num or max."


@check_of(_NOT_A_NUMBER)
def wrong_labels_are_never_a_number(subject: Subject, parts: tuple[str, ...] = ("support", "query")) -> None:
    """A label of -1 or `way` gives a loss of NaN or an error.

    Catches a label that is clipped, wraps around to another class, or drops its example.

    **Arguments:** `subject`, a `Subject`; `parts`, the sets in which to try it, default both.

    **Raises:** `CheckFailed`; `CheckSkipped` where tasks are no classification.

    >>> import jax, metakit as mk
    >>> learner = mk.prototypical.Prototypical(lambda x: x.reshape(len(x), -1))
    >>> sampler = mk.tasks.Episodes(mk.tasks.glyphs("test"), way=2, shot=1, queries=1)
    >>> mk.testing.wrong_labels_are_never_a_number(mk.testing.Subject(mk.prototypical, learner, sampler))
    """
    task = _episode(subject)
    if task.query.way is None:
        raise CheckSkipped("Its targets are real.")
    for part in parts:
        for wrong in (-1, task.query.way):
            bad = _changed(task, lambda t, part=part: getattr(t, part).y, lambda y, wrong=wrong: y.at[0].set(wrong))
            _require_no_number(subject, bad, f"{part}.y holds the label {wrong}")


@check_of(_NOT_A_NUMBER)
def nan_is_never_a_number(subject: Subject) -> None:
    """NaN in an input gives a loss of NaN or an error, so that training stops.

    Catches NaN that a max, a where or an argmax swallows.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`; `CheckSkipped` where tasks are no episodes.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> subject = mk.testing.Subject(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5))
    >>> mk.testing.nan_is_never_a_number(subject)
    """
    for part in ("support", "query"):
        bad = _changed(_episode(subject), lambda t, part=part: getattr(t, part).x, lambda x: x.at[0].set(jnp.nan))
        _require_no_number(subject, bad, f"{part}.x holds NaN")


def _require_no_number(subject: Subject, bad: Any, what: str) -> None:
    try:
        loss = subject.algorithm.meta_loss(subject.learner, bad, subject.call_key())
    except (ValueError, RuntimeError):  # a RuntimeError is eqx.error_if's
        return
    if bool(jnp.isfinite(loss)):
        raise CheckFailed(f"{what}, and meta_loss is {float(loss):.6g}.", _NOT_A_NUMBER)
