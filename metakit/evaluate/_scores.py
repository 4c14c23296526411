"""Per-task scores of thousands of tasks in one compiled call."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from metakit import random
from metakit._algorithm import require_algorithm, require_sampler
from metakit._compile import compiled, runs_alone
from metakit._episode import require_unmasked
from metakit._tree import any_deleted, is_key
from metakit._typecheck import typed
from metakit._types import PRNGKey
from metakit._wording import describe
from metakit.sharding import map_tasks, replicate

# Tasks that are not large run as many at once as keep the inputs near 4M numbers, up to these. Measured on 2 CPU
# cores, MAML on 10,000 sinusoids at 0 to 10 steps: 0.7 CPU seconds for 32 to 256 at once, 1.0 for 1024 and 1.9 for
# all of them, whose activations leave the cache. An accelerator needs more to be busy.
_NUMBERS_AT_ONCE = 1 << 22
_MOST_TASKS_AT_ONCE = {"cpu": 256}
_MOST_TASKS_ELSEWHERE = 1024


def _choose_chunk(chunk: Any, sampler: Any, key: Any, mesh: Mesh | None) -> Any:
    if chunk != "auto":
        return chunk
    task = eqx.filter_eval_shape(sampler, key)
    size = sum(leaf.size for leaf in jax.tree.leaves(task) if hasattr(leaf, "dtype"))
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    if runs_alone(size, platform):
        return 1
    most = _MOST_TASKS_AT_ONCE.get(platform, _MOST_TASKS_ELSEWHERE)
    return max(1, min(_NUMBERS_AT_ONCE // max(size, 1), most))


def _draw_and_use(function: Any, sampler: Any, task_key: Any) -> Any:
    draw_key, use_key = jax.random.split(task_key)
    return function(sampler(draw_key), use_key)


@compiled
def _jit_scores(function, sampler, key, num_tasks, mesh, chunk):
    devices = 1 if mesh is None else mesh.size
    # Rounded up so that the devices share evenly; the surplus are real tasks, further along the same stream.
    keys = random.task_keys(key, 0, -(-num_tasks // devices) * devices)

    one = eqx.Partial(_draw_and_use, function, sampler)
    outputs = map_tasks(one, keys, mesh=mesh, chunk=_choose_chunk(chunk, sampler, key, mesh))
    outputs = jax.tree.map(lambda leaf: leaf[:num_tasks] if eqx.is_array(leaf) else leaf, outputs)
    if mesh is not None:  # a few numbers a task: every host gets all of them
        everywhere = NamedSharding(mesh, PartitionSpec())
        outputs = eqx.filter_shard(outputs, everywhere)
    return outputs


@typed
def scores_of(
    function: Callable[..., Any],
    sampler: Callable[..., Any],
    key: PRNGKey,
    *,
    num_tasks: int,
    mesh: Mesh | None = None,
    chunk: Any = "auto",
) -> Any:
    """Whatever you want to know about each of many tasks, in one compiled call.

    Task $i$ is drawn with a key folded from `key` and $i$ alone, so scores with the same `key` and `sampler`
    belong to the same tasks (which makes paired comparisons possible), and neither chunks nor devices change
    them.

    **Arguments:**

    - `function`: `function(task, key) -> PyTree` of arrays, usually scalars. Where it uses a learner, write
      `eqx.Partial(function, learner)` instead of a closure: then another learner does not compile again.
    - `sampler`: `sampler(key) -> task`, pure.
    - `key`: of the whole stream of tasks. Use another than in training.
    - `num_tasks`: how many tasks; at least 1. The first 100 of 1000 are the tasks of `num_tasks=100`.
    - `mesh`: devices to spread the tasks over; default none. Any number of tasks is welcome.
    - `chunk`: how many tasks of a device run at once: a number, `None` for all, or `"auto"` (the default).

    **Returns:** the outputs of `function`, each array with a leading axis `[num_tasks]`; on no mesh, so that they go
    with those of another call. Nothing is dropped: a task that diverged is there as NaN, and `student_t` counts it.

    **Raises:** `ValueError` when `num_tasks` or `chunk` is below 1, or for the learner of a state that training was
    given; `TypeError` for a sampler's class in place of a sampler.

    >>> import jax, metakit as mk
    >>> draws = scores_of(lambda task, key: task ** 2, jax.random.normal, jax.random.key(0), num_tasks=4)
    >>> draws.shape
    (4,)
    """
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}; 600 to 10,000 test tasks are usual.")
    require_sampler(sampler)
    if any_deleted(function):
        raise ValueError(
            "the learner was given away: mk.train.run_steps and fit take the memory of the state that they are given. "
            "Use the learner of the state that they return."
        )
    if mesh is not None and not _traced(key):
        function, sampler = replicate(function, mesh), replicate(sampler, mesh)
        key = replicate(key, mesh)
    outputs = _jit_scores(function, sampler, key, num_tasks, mesh, chunk)
    return outputs if mesh is None else jax.tree.map(_home, outputs)


def _home(leaf: Any) -> Any:
    """An array that every device of a mesh holds, as one that goes with those of no mesh."""
    if not eqx.is_array(leaf) or isinstance(leaf, Tracer):
        return leaf
    here = leaf.addressable_data(0)
    # By way of the host: an array that was put on a device stays there.
    return here if is_key(leaf) else jnp.asarray(np.asarray(here))


def _traced(*trees: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def _score_task(algorithm: Any, metrics: Mapping[str, Any], learner: Any, task: Any, key: Any) -> dict[str, Any]:
    if not hasattr(task, "support") or not hasattr(task, "query"):
        raise TypeError(
            f"scores needs episodes, tasks with a support and a query set; the sampler gave {describe(task)}. What "
            "else a family reports is its diagnostics: mk.evaluate.scores_of(eqx.Partial(mk.rl_maml.diagnostics, "
            "learner), sampler, key, num_tasks=...)."
        )
    require_unmasked(task.query, "mk.evaluate.scores", "query")
    adapt_key, predict_key = jax.random.split(key)
    adapted = algorithm.adapt(learner, task.support, adapt_key)
    outputs = algorithm.predict(adapted, task.query.x, predict_key)
    return {name: metric(outputs, task.query.y) for name, metric in metrics.items()}


@typed
def scores(
    algorithm: Any,
    learner: Any,
    sampler: Callable[..., Any],
    key: PRNGKey,
    *,
    num_tasks: int,
    metrics: Mapping[str, Callable[..., Any]],
    mesh: Mesh | None = None,
    chunk: Any = "auto",
) -> dict[str, Float[Array, " tasks"]]:
    """Adapt to each of many tasks and score the predictions for its query set.

    **Arguments:**

    - `algorithm`: a module or `MetaLearner`; its `adapt` and `predict` are used.
    - `learner`: its learner. Another learner of the same structure does not compile again.
    - `sampler`, `key`, `num_tasks`, `mesh`, `chunk`: as in `scores_of`; tasks are episodes.
    - `metrics`: named functions `metric(outputs, targets) -> scalar`, such as
      `{"accuracy": mk.metrics.accuracy}`. All of them read one adaptation.

    **Returns:** for each metric one score per task, `[num_tasks]`. Pass them to `student_t`, `bootstrap` or
    `paired_difference`.

    **Raises:** `ValueError` when `num_tasks` or `chunk` is below 1, there is no metric, or a query set is a
    `MaskedExamples`, whose padding a metric would count; `TypeError` for something that is no algorithm, for tasks
    that are no episodes (use `scores_of` there), and for a sampler's class.

    >>> import jax, numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((5, 4, 1, 2, 2), "uint8"))
    >>> tasks = mk.tasks.Episodes(pool, way=5, shot=1, queries=2)
    >>> nearest = mk.evaluate.baselines.nearest_neighbour
    >>> accuracy = {"accuracy": mk.metrics.accuracy}
    >>> scores(nearest, None, tasks, jax.random.key(0), num_tasks=3, metrics=accuracy)["accuracy"].shape
    (3,)
    """
    require_algorithm(algorithm)
    if not metrics:
        raise ValueError('metrics is empty; name at least one, such as {"accuracy": mk.metrics.accuracy}.')
    function = eqx.Partial(_score_task, algorithm, dict(metrics), learner)
    return scores_of(function, sampler, key, num_tasks=num_tasks, mesh=mesh, chunk=chunk)
