"""What is under test: an algorithm with a learner and a sampler, and how its tasks are used."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import random
from metakit._algorithm import require_algorithm, require_sampler
from metakit._wording import describe, uncalled
from metakit.sharding import MetaGradient, meta_gradient
from metakit.train import ActingAlgorithm

from ._outcome import in_short


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, tree)


class InFloat64(eqx.Module):
    """A sampler whose tasks hold float64."""

    sampler: Callable[..., Any]

    def __call__(self, key: Any) -> Any:
        return in_float64(self.sampler(key))


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """An algorithm with a learner and a sampler: what every check of `mk.testing` takes.

    **Arguments:**

    - `algorithm`: a module of yours, or a `MetaLearner`.
    - `learner`: its learner, as small as can be: every check compiles it.
    - `sampler`: `sampler(key) -> task`, pure.
    - `metric`: `metric(outputs, targets)` of one task, for `adaptation_helps` and `training_helps`; default none.
    - `lower_is_better`: whether the metric is an error; default `False`.
    - `without`: a function from the learner to one whose adaptation is switched off, for `adaptation_helps`. By default
      the learner is compared with itself after adapting to another task's support set.
    - `training_steps`: how many outer steps of Adam must make the metric better, for `training_helps`; default none.
    - `num_tasks`: test tasks of these two; default 1000.
    - `gradient`: where the meta-gradient is meant to be another than the loss's: `gradient(learner, task, key) ->
      (where, expected)`, with `where(gradient)` the part that must equal `expected`. Default: finite differences.
    - `questions`: where tasks are no episodes: `questions(learner, task, key) -> (support, x)`, what `adapt` learns
      from and `predict` is asked.
    - `score`: where tasks are no episodes: `score(learner, task, key)`, in place of a metric.
    - `seed`: of tasks and keys; default 0.

    **Raises:** `TypeError` for something that is no algorithm or no sampler, and for a learner that is a class or a
    function; `ValueError` for a sampler that raises, or a count below 1.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> subject = mk.testing.Subject(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5))
    >>> mk.testing.jit_equals_eager(subject)
    """

    algorithm: Any
    learner: Any
    sampler: Callable[..., Any]
    _: dataclasses.KW_ONLY
    metric: Callable[..., Any] | None = None
    lower_is_better: bool = False
    without: Callable[[Any], Any] | None = None
    training_steps: int | None = None
    num_tasks: int = 1000
    gradient: Callable[..., Any] | None = None
    questions: Callable[..., Any] | None = None
    score: Callable[..., Any] | None = None
    seed: int = 0

    def __post_init__(self):
        require_algorithm(self.algorithm)
        require_sampler(self.sampler)
        if not callable(self.sampler):
            raise TypeError(
                f"sampler must be a function sampler(key) -> task, got {describe(self.sampler)}. "
                "One task that you have already is lambda key: task."
            )
        if isinstance(self.learner, type):
            raise TypeError(f"learner must be a learner, got {describe(self.learner)}. {uncalled(self.learner)}")
        if callable(getattr(self.learner, "meta_loss", None)):
            raise TypeError(
                f"learner must be a learner, got {describe(self.learner)}, which is an algorithm. The algorithm comes "
                "first, its learner second: check(mk.maml, mk.maml.MAML(...), sampler)."
            )
        if self.num_tasks < 2:
            raise ValueError(
                f"num_tasks must be at least 2 for an interval, got {self.num_tasks}; 1000 is the default."
            )
        if self.training_steps is not None and self.training_steps < 1:
            raise ValueError(f"training_steps must be at least 1, got {self.training_steps}, or None to leave it out.")
        try:
            eqx.filter_eval_shape(self.sampler, jax.random.key(0))
        except Exception as error:  # of any kind: it is the user's own function
            raise ValueError(
                f"sampler(key) raised {in_short(error)} A sampler takes one random key and returns one task."
            ) from error

    @property
    def name(self) -> str:
        return getattr(self.algorithm, "__name__", None) or type(self.algorithm).__name__

    @property
    def acts(self) -> bool:
        """Whether tasks are acted in instead of read."""
        return self.questions is not None

    @functools.cached_property
    def exact(self) -> "Subject":
        """The same in float64, where rounding hides no fault; itself where it does not run so."""
        with jax.enable_x64(True):
            doubled = dataclasses.replace(self, learner=in_float64(self.learner), sampler=InFloat64(self.sampler))
            doubled.__dict__["exact"] = doubled
            try:
                return doubled if doubled.is_float64 else self
            except Exception:  # noqa: BLE001 - whatever its code raises, it does not run in float64
                return self

    @functools.cached_property
    def is_float64(self) -> bool:
        """Whether the loss comes out in float64."""
        loss = eqx.filter_eval_shape(self.algorithm.meta_loss, self.learner, self.task(), self.call_key())
        return loss.dtype == jnp.float64

    @property
    def rtol(self) -> float:
        """What two orders of adding up may differ by: some hundred roundings, amplified by some inner steps."""
        return 1e-9 if self.is_float64 else 2e-3

    @property
    def atol(self) -> float:
        return 1e-12 if self.is_float64 else 1e-5

    def task(self) -> Any:
        return self.sampler(jax.random.key(self.seed + 3))

    def call_key(self) -> Any:
        return jax.random.key(self.seed + 4)

    def tasks(self, count: int) -> Any:
        return eqx.filter_vmap(self.sampler)(random.task_keys(jax.random.key(self.seed + 1), 0, count))

    def keys(self, count: int) -> Any:
        return random.task_keys(jax.random.key(self.seed + 2), 0, count)

    def support_and_x(self, learner: Any, task: Any, key: Any) -> tuple[Any, Any]:
        if self.questions is not None:
            return self.questions(learner, task, key)
        return task.support, task.query.x

    def predictions(self, learner: Any, task: Any, key: Any) -> Any:
        support, x = self.support_and_x(learner, task, key)
        return self.algorithm.predict(self.algorithm.adapt(learner, support, key), x, key)

    def everything(self, learner: Any, task: Any, key: Any) -> dict[str, Any]:
        """All that the three functions say about one task."""
        return {
            "meta_loss": self.algorithm.meta_loss(learner, task, key),
            "predict": self.predictions(learner, task, key),
        }

    def as_held(self, task: Any, key: Any) -> Any:
        """What the meta-gradient holds fixed while the learner moves: where it acts, what was acted out."""
        if self.acts and isinstance(self.algorithm, ActingAlgorithm):
            return self.algorithm.collect(self.learner, task, key)
        return task

    @functools.cached_property
    def reference(self) -> MetaGradient:
        """The meta-gradient over four tasks, all at once on one device."""
        run = eqx.filter_jit(functools.partial(meta_gradient, self.algorithm, chunk=None))
        return run(self.learner, self.tasks(4), self.keys(4))
