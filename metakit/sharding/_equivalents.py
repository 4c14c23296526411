"""The meta-gradient by JAX's two other ways of using many devices, to check the first against."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from metakit._typecheck import typed

from ._chunks import Chunk, choose_chunk
from ._gradient import MetaGradient, mean_over_tasks, sum_over_tasks, take_apart
from ._mesh import require_divisible, tasks_spec


@typed
def meta_gradient_pmap(
    algorithm: Any,
    learner: Any,
    tasks: Any,
    keys: Any = None,
    *,
    mesh: Mesh,
    trainable: Any = None,
    chunk: Chunk = "auto",
) -> MetaGradient:
    """`meta_gradient` through `jax.pmap`: the same numbers, as a check.

    Not for scale: `pmap` is in maintenance mode (JAX has rebuilt it on `jit` and `shard_map`), compiles on
    its own instead of inside your `jit`, and copies the tasks to the devices in every call.

    **Arguments, returns and raises:** as `meta_gradient`, with `mesh` required; call it outside `jit`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> algorithm = mk.MetaLearner(adapt=None, predict=None, meta_loss=lambda w, task, key=None: w * task)
    >>> mesh = mk.sharding.task_mesh(1)
    >>> float(meta_gradient_pmap(algorithm, jnp.asarray(2.0), jnp.asarray([1.0, 3.0]), mesh=mesh).loss)
    4.0
    """
    problem = take_apart(algorithm, learner, tasks, keys, trainable)
    require_divisible(problem.count, mesh)
    devices = list(mesh.devices.flat)
    local_count = problem.count // len(devices)
    size = choose_chunk(chunk, local_count, problem.batched, devices[0].platform)

    @partial(jax.pmap, axis_name="task", in_axes=(None, None, 0), devices=devices)
    def local(moving, still, batched):
        total, losses = sum_over_tasks(problem, moving, still, batched, size)
        return jax.lax.psum((total, jnp.sum(losses)), "task"), losses

    split = jax.tree.map(lambda leaf: leaf.reshape(len(devices), local_count, *leaf.shape[1:]), problem.batched)
    reduced, losses = local(problem.moving, problem.still, split)
    total, loss = jax.tree.map(lambda leaf: leaf[0], reduced)  # every device holds the same sum
    return mean_over_tasks(total, loss, losses.reshape(problem.count), problem.count)


@typed
def meta_gradient_named(
    algorithm: Any,
    learner: Any,
    tasks: Any,
    keys: Any = None,
    *,
    mesh: Mesh,
    trainable: Any = None,
    chunk: Chunk = None,
) -> MetaGradient:
    """`meta_gradient` through `jit` and `NamedSharding`: the same numbers, as a check.

    Not for scale: XLA's partitioner splits the program by its own rules, and gathers all tasks on every
    device wherever a scan runs over them or a grouped convolution mixes them (openxla/xla#47945).

    **Arguments, returns and raises:** as `meta_gradient`, with `mesh` required, and `chunk=None` (all tasks
    at once) the default: a scan over tasks is what makes the partitioner gather them.

    >>> import jax.numpy as jnp, metakit as mk
    >>> algorithm = mk.MetaLearner(adapt=None, predict=None, meta_loss=lambda w, task, key=None: w * task)
    >>> mesh = mk.sharding.task_mesh(1)
    >>> float(meta_gradient_named(algorithm, jnp.asarray(2.0), jnp.asarray([1.0, 3.0]), mesh=mesh).loss)
    4.0
    """
    problem = take_apart(algorithm, learner, tasks, keys, trainable)
    require_divisible(problem.count, mesh)
    size = choose_chunk(chunk, problem.count, problem.batched, mesh.devices.flat[0].platform)

    @jax.jit
    def whole(moving, still, batched):
        batched = jax.lax.with_sharding_constraint(batched, NamedSharding(mesh, tasks_spec(mesh)))
        total, losses = sum_over_tasks(problem, moving, still, batched, size)
        return mean_over_tasks(total, jnp.sum(losses), losses, problem.count)

    return whole(problem.moving, problem.still, problem.batched)
