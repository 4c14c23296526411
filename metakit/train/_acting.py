"""What steps need of an algorithm whose tasks are acted in: data that several evaluations of the loss can share."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import random
from metakit.sharding import map_tasks, num_tasks

from ._draw import step_keys
from ._state import TrainState
from ._step import annealed


@runtime_checkable
class ActingAlgorithm(Protocol):
    """An algorithm that can say apart what it did in a task and how good that was.

    Beside `adapt`, `predict` and `meta_loss`:

    - `collect(learner, task, key) -> data`: what the learner does in a task; no gradient flows through it.
    - `meta_loss(learner, data)`: takes the data in place of the task, and holds them fixed; at the learner that
      collected them it is `meta_loss(learner, task, key)`.
    - `divergence(learner, data) -> scalar`: how far the learner's behaviour has moved from the one that collected them,
      0 there.

    >>> import metakit as mk
    >>> isinstance(mk.rl_maml, mk.train.ActingAlgorithm), isinstance(mk.maml, mk.train.ActingAlgorithm)
    (True, False)
    """

    @property
    def collect(self) -> Callable[..., Any]: ...

    @property
    def divergence(self) -> Callable[..., Any]: ...

    @property
    def meta_loss(self) -> Callable[..., Any]: ...


def begin(
    algorithm: Any, state: TrainState, tasks: Any, mesh: Any, chunk: Any, anneal: Any, rule: str
) -> tuple[Any, Any]:
    """The learner of this step, and what it collects in each task."""
    if not isinstance(algorithm, ActingAlgorithm):
        raise TypeError(
            f"{rule} needs an algorithm with collect, divergence and meta_loss, such as mk.rl_maml or mk.rl_squared; "
            f"{getattr(algorithm, '__name__', type(algorithm).__name__)} lacks one. mk.train.step takes any algorithm."
        )
    learner = state.learner if anneal is None else annealed(anneal, state)
    keys = random.task_keys(step_keys(state)[1], 0, num_tasks(tasks))
    return learner, map_tasks(eqx.Partial(algorithm.collect, learner), tasks, keys, mesh=mesh, chunk=chunk)


def mean_over_tasks(function: Callable[..., Any], data: Any, mesh: Any, chunk: Any) -> Any:
    """The means of a function of one task's data; arrays that it needs are leaves of it, as for `map_tasks`."""
    return jax.tree.map(jnp.mean, map_tasks(function, data, mesh=mesh, chunk=chunk))
