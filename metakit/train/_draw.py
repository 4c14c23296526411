"""The tasks of a training step, and of many steps at once."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metakit import random
from metakit._typecheck import typed
from metakit.sharding import map_tasks

from ._errors import require_positive
from ._state import TrainState

# Drawing a few curves takes longer to start than to do. This many numbers, 4 MiB in float32, still fit a cache.
_NUMBERS_AT_ONCE = 2**20


def step_keys(state: TrainState) -> tuple[Any, Any]:
    """Of this step's tasks, and of the algorithm's own randomness: no key is used twice."""
    task_key, loss_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    return task_key, loss_key


@typed
def draw_tasks(sampler: Callable[..., Any], state: TrainState, *, meta_batch: int, mesh: Mesh | None = None) -> Any:
    """The tasks that `run_steps` draws for the step that `state` is about to take.

    **Arguments:**

    - `sampler`: `sampler(key) -> task`, pure.
    - `state`: whose `key` and `step` decide the tasks.
    - `meta_batch`: how many tasks.
    - `mesh`: draw on the devices of a mesh, each its own share; default none.

    **Returns:** a batch of tasks, every array with a leading axis of `meta_batch`.

    **Raises:** `ValueError` when `meta_batch` is below 1, or is no multiple of the mesh's devices.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> state = mk.train.init(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    >>> draw_tasks(jax.random.normal, state, meta_batch=3).shape
    (3,)
    """
    require_positive("meta_batch", meta_batch, "how many tasks one step averages over; 4 to 32 is usual")
    keys = random.task_keys(step_keys(state)[0], 0, meta_batch)
    return map_tasks(sampler, keys, mesh=mesh, chunk=None)


def tasks_of_steps(
    sampler: Any, state: TrainState, *, num_steps: int, meta_batch: int, mesh: Mesh | None
) -> Callable[[TrainState], Any]:
    """`draw_tasks` for `state` and the steps after it, as a function of a later state: drawn now, or one by one."""
    if num_steps == 1:
        return functools.partial(draw_tasks, sampler, meta_batch=meta_batch, mesh=mesh)

    def keys_of(step: Any) -> Any:
        moved = eqx.tree_at(lambda s: s.step, state, step)
        return random.task_keys(step_keys(moved)[0], 0, meta_batch)

    steps = state.step + jnp.arange(num_steps, dtype=state.step.dtype)
    keys = jax.vmap(keys_of, out_axes=1)(steps)
    drawn = map_tasks(eqx.Partial(_one_a_step, sampler), keys, mesh=mesh, chunk=None)
    # Every array is [task, step, ...]: the axis that a mesh divides comes first.
    arrays, static = eqx.partition(drawn, eqx.is_array)

    def tasks_of(later: TrainState) -> Any:
        offset = later.step - state.step
        one = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, offset, axis=1, keepdims=False), arrays)
        return eqx.combine(one, static)

    return tasks_of


def _one_a_step(sampler: Any, keys: Any) -> Any:
    return eqx.filter_vmap(lambda key: sampler(key))(keys)


def steps_ahead(sampler: Any, state: TrainState, num_steps: int, meta_batch: int) -> int:
    """For how many steps to draw at once: as many as stay small together, in equal parts of `num_steps`."""
    task = eqx.filter_eval_shape(sampler, state.key)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(task) if hasattr(leaf, "shape"))
    most = _NUMBERS_AT_ONCE // max(1, meta_batch * numbers)
    return max((part for part in range(1, num_steps + 1) if num_steps % part == 0 and part <= most), default=1)
