"""The host's side of training: many dispatches, validation, checkpoints, and a way to stop."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh

from metakit._errors import nearest
from metakit._typecheck import typed

from ._checkpoint import Best, Checkpoints
from ._events import Event, Interrupted, Progress, Resumed, Saved, Validated
from ._interrupt import DeferredInterrupt
from ._state import TrainState, own, require_one, require_unused
from ._step import run_steps, step

# Long enough that the host's work between dispatches vanishes, short enough that a display moves.
_MOST_STEPS_PER_DISPATCH = 50


class FitResult(NamedTuple):
    """What `fit` returns.

    **Arguments:**

    - `state`: the state after the last step; pass it on to train further.
    - `best_learner`: the learner with the best validation score; the last one where there was no validation.
    - `best_score`: its score; `None` where there was no validation.
    - `history`: every event, in order.
    - `interrupted`: whether Ctrl-C ended the run early.

    >>> FitResult(None, None, 0.9, (), False).best_score
    0.9
    """

    state: TrainState | None
    best_learner: Any
    best_score: float | None
    history: tuple[Event, ...]
    interrupted: bool


@typed
def fit(
    algorithm: Any,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    sampler: Callable[..., Any],
    *,
    num_steps: int,
    meta_batch: int,
    steps_per_dispatch: int | None = None,
    validate: Callable[[Any], Any] | None = None,
    validate_every: int | None = None,
    best: Literal["highest", "lowest"] | None = None,
    best_by: str | None = None,
    checkpoints: Checkpoints | None = None,
    save_every: int | None = None,
    on_event: Callable[[Event], Any] | None = None,
    mesh: Mesh | None = None,
    chunk: Any = "auto",
    anneal: Callable[[Any, Any], Any] | None = None,
    rule: Callable[..., Any] = step,
) -> FitResult:
    """Meta-train until the state has taken `num_steps` steps.

    Everything that can be asked of a run is an event (see `on_event`), so `fit` prints nothing. With
    `checkpoints`, a run that is started again continues from the newest one, bit for bit.

    **Arguments:**

    - `algorithm`, `optimiser`, `sampler`, `meta_batch`, `mesh`, `chunk`, `anneal`, `rule`: as in `run_steps`.
    - `state`: from `init` or an earlier result. Its memory is donated: afterwards use the result's.
    - `num_steps`: steps in all, counting those that `state` (or the checkpoint) has already taken.
    - `steps_per_dispatch`: steps in one compiled call; it must divide `num_steps`, `validate_every` and
      `save_every`. `None` (the default) takes the largest number up to 50 that does. Ctrl-C and progress wait
      for a dispatch to end.
    - `validate`: `validate(learner)`, called on the host every `validate_every` steps and after the last. It
      returns a number, something with a `mean` (an `Interval` of `mk.evaluate`), or a mapping of names to
      either.
    - `validate_every`: steps between validations; `None` (the default) validates after the last step only.
    - `best`: whether the `"highest"` (accuracy) or the `"lowest"` (an error) validation score is best. No
      default, because the wrong one silently keeps the worst learner.
    - `best_by`: where `validate` returns a mapping, the name that decides; may be left out if it holds one.
    - `checkpoints`: where to save, after each validation and at the end; default nowhere.
    - `save_every`: steps between further saves; default none.
    - `on_event`: called with each `Event`: `Resumed`, `Progress` (one per dispatch), `Validated`, `Saved`,
      `Interrupted`.

    **Returns:** a `FitResult`. After Ctrl-C the current dispatch is finished and saved, and the result says
    `interrupted=True`; a second Ctrl-C raises `KeyboardInterrupt` at once.

    **Raises:** `NonFiniteLossError`, which carries the last good state, when a step is not finite;
    `ValueError` for counts that are below 1 or do not divide, a validation without `best`, or a state that was used
    before or holds several trainings;
    `CheckpointError` when a checkpoint does not fit `state`; `DiskFullError` when there is no room for one.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> pull = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
    >>> optimiser = optax.sgd(0.1)
    >>> state = mk.train.init(jnp.ones(()), optimiser, key=jax.random.key(0))
    >>> result = mk.train.fit(
    ...     pull, optimiser, state, jax.random.normal, num_steps=4, meta_batch=8,
    ...     validate=lambda w: abs(float(w)), validate_every=2, best="lowest",
    ... )
    >>> [type(event).__name__ for event in result.history]
    ['Progress', 'Validated', 'Progress', 'Validated']
    """
    if validate is not None and best is None:
        raise ValueError(
            'best must say whether the "highest" (accuracy) or the "lowest" (an error) validation score is best.'
        )
    if validate is None and not (best is None and best_by is None and validate_every is None):
        raise ValueError("best, best_by and validate_every need validate, a function of the learner.")
    size = _dispatch_size(num_steps, steps_per_dispatch, validate_every=validate_every, save_every=save_every)

    history: list[Event] = []

    def emit(event: Event) -> None:
        history.append(event)
        if on_event is not None:
            on_event(event)

    require_unused(state)
    require_one(state)
    kept: Best | None = None
    if checkpoints is not None and (checkpoints.latest_step or 0) > int(state.step):
        kept = checkpoints.restore_best(state.learner)
        state = checkpoints.restore(state)
        emit(Resumed(int(state.step)))
    taken = int(state.step)
    if taken > num_steps:
        raise ValueError(f"num_steps={num_steps} steps in all were asked for, but the state has taken {taken}.")

    def save() -> None:
        if checkpoints is not None and checkpoints.latest_step != taken:
            checkpoints.save(state, kept)
            emit(Saved(taken))

    clock = _Clock(taken, num_steps)
    with DeferredInterrupt() as interrupt:
        while taken < num_steps:
            steps = min(size - taken % size, num_steps - taken)  # back onto the grid after a step of the user's own
            state, diagnostics = run_steps(
                algorithm,
                optimiser,
                state,
                sampler,
                num_steps=steps,
                meta_batch=meta_batch,
                mesh=mesh,
                chunk=chunk,
                anneal=anneal,
                rule=rule,
            )
            taken += steps
            loss, norm = (float(np.mean(np.asarray(x))) for x in (diagnostics.loss, diagnostics.gradient_norm))
            emit(Progress(taken, loss, norm, *clock.tick(taken)))
            if validate is not None and (taken == num_steps or (validate_every and taken % validate_every == 0)):
                result = validate(state.learner)
                score = _score(result, best_by)
                is_best = _is_better(score, kept, best)
                if is_best:
                    kept = Best(own(state.learner), score, taken)  # a copy: the next dispatch donates this one
                emit(Validated(taken, result, score, is_best))
                save()
                clock.skip()
            if taken == num_steps or interrupt.requested or (save_every and taken % save_every == 0):
                save()
                clock.skip()
            if interrupt.requested and taken < num_steps:
                emit(Interrupted(taken))
                break
    learner, score = (own(state.learner), None) if kept is None else (kept.learner, kept.score)
    return FitResult(state, learner, score, tuple(history), taken < num_steps)


def _dispatch_size(num_steps: int, steps_per_dispatch: int | None, **periods: int | None) -> int:
    counts = {"num_steps": num_steps} | {name: count for name, count in periods.items() if count is not None}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    common = math.gcd(*counts.values())
    if steps_per_dispatch is None:
        return max(n for n in range(1, _MOST_STEPS_PER_DISPATCH + 1) if common % n == 0)
    if steps_per_dispatch < 1 or common % steps_per_dispatch != 0:
        listed = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(
            f"steps_per_dispatch={steps_per_dispatch} must divide {listed}, so that each falls on the end of "
            f"a dispatch. Use a divisor of {common}, or leave it out."
        )
    return steps_per_dispatch


def _is_better(score: float, kept: Best | None, best: str | None) -> bool:
    if kept is None or not math.isfinite(score):
        return math.isfinite(score)  # a learner that cannot be scored is never the best
    return score > kept.score if best == "highest" else score < kept.score


def _score(result: Any, best_by: str | None) -> float:
    """The number that decides: of a number, of something with a mean, or of one entry of a mapping."""
    if isinstance(result, Mapping):
        if best_by is None and len(result) != 1:
            raise ValueError(
                f"validate returned {list(result)}; say which one decides: best_by={next(iter(result), '')!r}."
            )
        name = next(iter(result)) if best_by is None else best_by
        if name not in result:
            raise ValueError(f"best_by={name!r} is not in what validate returned. {nearest(name, map(str, result))}")
        result = result[name]
    elif best_by is not None:
        raise ValueError(f"best_by={best_by!r} needs validate to return a mapping, got {type(result).__name__}.")
    mean = getattr(result, "mean", None)
    try:
        return float(result if mean is None or callable(mean) else mean)  # an array's mean is a method
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"validate must return a number, something with a mean, or a mapping of names to either, got {result!r}."
        ) from error


class _Clock:
    """Speed and time left. The first dispatch compiles, so it counts only until there is another."""

    def __init__(self, taken: int, num_steps: int):
        self.first = True
        self.last_taken, self.num_steps = taken, num_steps
        self.last_time = time.perf_counter()
        self.steps, self.seconds = 0, 0.0

    def tick(self, taken: int) -> tuple[float, float]:
        now = time.perf_counter()
        steps, seconds = taken - self.last_taken, max(now - self.last_time, 1e-9)
        if self.first:
            left = (self.num_steps - taken) * seconds / steps
        else:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds
            left = (self.num_steps - taken) * self.seconds / self.steps
        self.first = False
        self.last_taken, self.last_time = taken, now
        return steps / seconds, left

    def skip(self) -> None:
        """Do not count the time since the last tick as training."""
        self.last_time = time.perf_counter()
