"""A function of one task over many tasks, for evaluation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh, PartitionSpec

from metakit._typecheck import typed

from ._chunks import Chunk, choose_chunk, each_task, fold_chunks
from ._mesh import enter, num_tasks, require_divisible, tasks_spec


@typed
def map_tasks(function: Callable[..., Any], *batched: Any, mesh: Mesh | None = None, chunk: Chunk = "auto") -> Any:
    """Apply a function of one task to many, in chunks, on one device or many.

    Like `jax.vmap`, but memory is that of one chunk, and nothing crosses between devices.

    **Arguments:**

    - `function`: takes one task's arguments and returns any PyTree. Arrays that live on a mesh (a learner, a pool of
      images) must be its leaves, as in a module or `eqx.Partial(function, learner)`; a closure's are out of reach.
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
    own_arrays, own_static = eqx.partition(function, eqx.is_array)
    count = num_tasks(arrays)
    rest: list[Any] = []  # what the outputs hold beside arrays, the same for every task

    def all_of(own_arrays, arrays, size):
        def one(*task):
            applied = eqx.combine(own_arrays, own_static)(*eqx.combine(task, static))
            output, other = eqx.partition(applied, eqx.is_array)
            rest[:] = [other]
            return output

        return fold_chunks(lambda some: (None, each_task(one, some, num_tasks(some))), None, arrays, size)[1]

    if mesh is None:
        size = choose_chunk(chunk, count, arrays, jax.default_backend())
        outputs = all_of(own_arrays, arrays, size)
    else:
        require_divisible(count, mesh)
        size = choose_chunk(chunk, count // mesh.size, arrays, mesh.devices.flat[0].platform)
        everywhere, spread = PartitionSpec(), tasks_spec(mesh)

        # The function's arrays enter as arguments: those of a mesh that come in by closure still have its type there,
        # and indexing them fails.
        @partial(jax.shard_map, mesh=mesh, in_specs=(everywhere, spread), out_specs=spread, check_vma=False)
        def local(own_arrays, arrays):
            return all_of(own_arrays, arrays, size)

        outputs = local(enter(own_arrays, mesh, everywhere), enter(arrays, mesh, spread))
    return eqx.combine(outputs, rest[0])
