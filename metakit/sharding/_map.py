"""A function of one task over many tasks, for evaluation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh

from metakit._typecheck import typed

from ._chunks import Chunk, choose_chunk, each_task, fold_chunks
from ._mesh import enter, num_tasks, require_divisible, tasks_spec


@typed
def map_tasks(function: Callable[..., Any], *batched: Any, mesh: Mesh | None = None, chunk: Chunk = "auto") -> Any:
    """Apply a function of one task to many, in chunks, on one device or many.

    Like `jax.vmap`, but memory is that of one chunk, and nothing crosses between devices.

    **Arguments:**

    - `function`: takes one task's arguments and returns any PyTree; it may close over a learner.
    - `*batched`: its arguments, each with a leading task axis on every array.
    - `mesh`: devices to spread the tasks over, from `task_mesh`; `None` (the default) is no spreading.
    - `chunk`: how many tasks of a device run at once, as in `meta_gradient`.

    **Returns:** the outputs with a leading task axis on every array; spread over the mesh if there is one.

    **Raises:** `ValueError` when the arguments disagree about the number of tasks, when the mesh does not
    divide it, or for a chunk below 1.

    >>> import jax.numpy as jnp
    >>> map_tasks(lambda x, y: x.sum() * y, jnp.ones((3, 2)), jnp.arange(3.0), chunk=2).tolist()
    [0.0, 2.0, 4.0]
    """
    arrays, static = eqx.partition(batched, eqx.is_array)
    count = num_tasks(arrays)
    rest: list[Any] = []  # what the outputs hold beside arrays, the same for every task

    def one(*task):
        output, other = eqx.partition(function(*eqx.combine(task, static)), eqx.is_array)
        rest[:] = [other]
        return output

    def some(tasks):
        return None, each_task(one, tasks, num_tasks(tasks))

    if mesh is None:
        size = choose_chunk(chunk, count, arrays, jax.default_backend())
        outputs = fold_chunks(some, None, arrays, size)[1]
    else:
        require_divisible(count, mesh)
        size = choose_chunk(chunk, count // mesh.size, arrays, mesh.devices.flat[0].platform)
        spread = tasks_spec(mesh)

        @partial(jax.shard_map, mesh=mesh, in_specs=(spread,), out_specs=spread, check_vma=False)
        def local(arrays):
            return fold_chunks(some, None, arrays, size)[1]

        outputs = local(enter(arrays, mesh, spread))
    return eqx.combine(outputs, rest[0])
