"""The learner in training: compiled loops, checkpoints, and whether it gets better."""

import tempfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from metakit._hyperparameter import trainable
from metakit.evaluate import Interval, scores_of, student_t
from metakit.train import Checkpoints, draw_tasks, init, run_steps, step

from ._outcome import CheckFailed, CheckSkipped, check_of, require_close, require_equal
from ._subject import Subject

_STRUCTURE = "Let no shape, dtype or static field depend on values, and keep no state beside the learner."


def _optimiser() -> optax.GradientTransformation:
    return optax.adam(1e-2)


def _start(subject: Subject) -> Any:
    if not any(jax.tree.leaves(trainable(subject.learner))):
        raise CheckSkipped("The learner holds nothing that training moves.")
    return init(subject.learner, _optimiser(), key=jax.random.key(subject.seed + 5))


class _Drawn(eqx.Module):
    """A sampler of tasks drawn before: a compiled draw may round otherwise than a plain one."""

    tasks: Any
    count: int = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        chosen = jax.random.randint(key, (), 0, self.count)
        return jax.tree.map(lambda leaf: leaf[chosen], self.tasks)


@check_of(_STRUCTURE)
def scan_equals_loop(subject: Subject) -> None:
    """Training steps in one `jax.lax.scan` give what a Python loop of steps gives.

    Catches a learner whose structure, dtypes or numbers change under training inside the scan.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`; `CheckSkipped` for a learner with nothing to train.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.scan_equals_loop(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    outer, state, sampler = _optimiser(), _start(subject), _Drawn(subject.tasks(8), 8)
    looped, losses = state, []
    for _ in range(3):
        tasks = draw_tasks(sampler, looped, meta_batch=2)
        looped, diagnostics = step(subject.algorithm, outer, looped, tasks)
        losses.append(diagnostics.loss)
    scanned, diagnostics = run_steps(subject.algorithm, outer, state, sampler, num_steps=3, meta_batch=2)
    require_close(diagnostics.loss, jnp.stack(losses), subject, "Losses of the scan and the loop differ", _STRUCTURE)
    # Adam divides by the gradient's size, so a rounding error in a vanishing gradient moves a weight by up to
    # the rate.
    tolerances = {"rtol": 1e-6, "atol": 1e-8} if subject.is_float64 else {"rtol": 1e-2, "atol": 1e-2}
    require_close(
        scanned.learner, looped.learner, subject, "Learners of the scan and the loop differ", _STRUCTURE, **tolerances
    )


_ARRAYS = "Keep every number that training or adaptation changes in an array of the learner."


@check_of(_ARRAYS)
def resumes_bit_for_bit(subject: Subject) -> None:
    """A run that was saved and loaded goes on as if it had never stopped.

    Catches a leaf that a checkpoint loses, rounds or reorders, and state that is kept beside the learner.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`; `CheckSkipped` for a learner with nothing to train.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.resumes_bit_for_bit(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    outer = _optimiser()

    def two_steps(state: Any) -> Any:
        return run_steps(subject.algorithm, outer, state, subject.sampler, num_steps=2, meta_batch=2)[0]

    halfway = two_steps(_start(subject))
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(folder, config={}) as checkpoints:
            checkpoints.save(halfway)
        # Other numbers everywhere, so that what is not restored shows.
        blank = jax.tree.map(lambda leaf: leaf * 0 if eqx.is_inexact_array(leaf) else leaf, subject.learner)
        with Checkpoints(folder) as checkpoints:
            loaded = checkpoints.restore(init(blank, outer, key=jax.random.key(subject.seed + 8)))
    require_equal(two_steps(loaded), two_steps(halfway), "After loading, training goes on otherwise", _ARRAYS)


def _score(subject: Subject, learner: Any, support: Any, task: Any, key: Any) -> Any:
    if subject.metric is None:
        raise CheckSkipped("It needs a metric, such as metric=mk.metrics.accuracy.")
    adapt_key, predict_key = jax.random.split(key)
    adapted = subject.algorithm.adapt(learner, support, adapt_key)
    return subject.metric(subject.algorithm.predict(adapted, task.query.x, predict_key), task.query.y)


class _Own(eqx.Module):
    """The score of a learner on a task."""

    subject: Subject = eqx.field(static=True)
    learner: Any

    def __call__(self, task: Any, key: Any) -> Any:
        if self.subject.score is not None:
            return self.subject.score(self.learner, task, key)
        return _score(self.subject, self.learner, task.support, task, key)


class _Others(eqx.Module):
    """The score of a learner on a task after adapting to another task."""

    subject: Subject = eqx.field(static=True)
    learner: Any

    def __call__(self, task: Any, key: Any) -> Any:
        draw_key, use_key = jax.random.split(key)
        return _score(self.subject, self.learner, self.subject.sampler(draw_key).support, task, use_key)


def _interval(subject: Subject, function: Any) -> Interval:
    key = jax.random.key(subject.seed + 6)
    return student_t(scores_of(function, subject.sampler, key, num_tasks=subject.num_tasks))


def _require_better(subject: Subject, better: Interval, worse: Interval, by: str, advice: str) -> str:
    disjoint = better.high < worse.low if subject.lower_is_better else better.low > worse.high
    if not disjoint:
        raise CheckFailed(f"{by} does not help: {better} with it, {worse} without.", advice)
    return f"{better} with it, {worse} without"


def _require_score(subject: Subject) -> None:
    if subject.metric is None and subject.score is None:
        raise CheckSkipped("It needs a metric, such as metric=mk.metrics.accuracy.")


@check_of("Try a larger inner rate or more inner steps; or train the learner first.")
def adaptation_helps(subject: Subject) -> str:
    """Adapting to a task's support set is better than not adapting, with disjoint 95 % intervals.

    Without is the learner of the subject's `without`; by default the learner itself after adapting to the support set
    of another task. Catches an adaptation that does nothing, or goes uphill.

    **Arguments:** `subject`, a `Subject` with a `metric` or `score`.

    **Returns:** the two intervals, in words.

    **Raises:** `CheckFailed`; `CheckSkipped` without a metric.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.LinearRegression(5, 5)
    >>> error = mk.metrics.mean_squared_error
    >>> subject = mk.testing.Subject(mk.ridge, learner, sampler, metric=error, lower_is_better=True)
    >>> mk.testing.adaptation_helps(subject).endswith("without")
    True
    """
    _require_score(subject)
    if subject.without is not None:
        worse = _Own(subject, subject.without(subject.learner))
    elif subject.score is not None:
        raise CheckSkipped("Where the learner acts it needs without=, the learner that does not adapt.")
    else:
        worse = _Others(subject, subject.learner)
    intervals = [_interval(subject, function) for function in (_Own(subject, subject.learner), worse)]
    return _require_better(
        subject, *intervals, by="Adaptation", advice="Try more inner steps, another inner rate, or a trained learner."
    )


@check_of("Try more training steps.")
def training_helps(subject: Subject) -> str:
    """`training_steps` outer steps of Adam make the learner better, with disjoint 95 % intervals.

    Catches a meta-gradient that does not reach what matters.

    **Arguments:** `subject`, a `Subject` with `training_steps` and a `metric` or `score`.

    **Returns:** the two intervals, in words.

    **Raises:** `CheckFailed`; `CheckSkipped` without a metric or training steps.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.LinearRegression(5, 5)
    >>> error = mk.metrics.mean_squared_error
    >>> subject = mk.testing.Subject(mk.ridge, learner, sampler, metric=error, lower_is_better=True, training_steps=60)
    >>> mk.testing.training_helps(subject).endswith("without")
    True
    """
    _require_score(subject)
    if subject.training_steps is None:
        raise CheckSkipped("It needs training_steps=, how many are enough.")
    state, _ = run_steps(
        subject.algorithm,
        _optimiser(),
        _start(subject),
        subject.sampler,
        num_steps=subject.training_steps,
        meta_batch=8,
    )
    intervals = [_interval(subject, _Own(subject, learner)) for learner in (state.learner, subject.learner)]
    return _require_better(subject, *intervals, by="Training", advice="Try more training_steps.")
