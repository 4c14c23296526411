"""A mesh whose one axis is tasks, and where to put what."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metakit._typecheck import typed


@typed
def task_mesh(num_devices: int | None = None, axis: str = "task") -> Mesh:
    """A mesh of devices along one axis, over which tasks are spread.

    **Arguments:**

    - `num_devices`: how many devices; `None` (the default) takes all of them, on every host once
      `jax.distributed` is initialised.
    - `axis`: the name of the axis, for your own `jax.shard_map`.

    **Returns:** a `jax.sharding.Mesh`. Any other mesh works too: tasks are spread over all of its axes.

    **Raises:** `ValueError` when fewer devices exist than were asked for.

    >>> task_mesh(1).shape["task"]
    1
    """
    devices = jax.devices()
    wanted = len(devices) if num_devices is None else num_devices
    if not 1 <= wanted <= len(devices):
        raise ValueError(
            f"num_devices={num_devices} was asked for, but {len(devices)} device(s) of kind "
            f"{devices[0].platform!r} exist. On a CPU, set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N before JAX starts."
        )
    # Auto, not make_mesh's default of Explicit, which puts the mesh into every type and breaks plain
    # jax.vmap.
    return jax.make_mesh((wanted,), (axis,), axis_types=(AxisType.Auto,), devices=devices[:wanted])


def tasks_spec(mesh: Mesh) -> PartitionSpec:
    """The leading axis spread over every axis of the mesh."""
    return PartitionSpec(mesh.axis_names)


def _place(tree: Any, sharding: NamedSharding) -> Any:
    def place(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # JAX 0.10.2: device_put refuses a typed key array once the sharding spans several processes.
            data = jax.device_put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


@typed
def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a whole copy of every array of a tree on every device of the mesh.

    **Arguments:** `tree`, any PyTree, usually a learner or training state; `mesh`, from `task_mesh`.

    **Returns:** the tree with its arrays placed; what is not an array stays as it is. With several hosts,
    every host calls this with equal values.

    >>> import jax.numpy as jnp
    >>> replicate(jnp.ones(3), task_mesh()).sharding.is_fully_replicated
    True
    """
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


@typed
def shard_tasks(tasks: Any, mesh: Mesh) -> Any:
    """Spread the leading axis of every array of a tree over the devices of the mesh.

    Placing tasks (or the keys they are drawn from) this way before a compiled step saves a copy to every
    device.

    **Arguments:** `tasks`, any PyTree whose arrays lead with the task axis; `mesh`, from `task_mesh`.

    **Returns:** the tree with its arrays placed.

    **Raises:** `ValueError` when the number of tasks is not a multiple of the number of devices.

    >>> import jax.numpy as jnp
    >>> shard_tasks(jnp.ones((4, 3)), task_mesh(1)).shape
    (4, 3)
    """
    require_divisible(num_tasks(tasks), mesh)
    return _place(tasks, NamedSharding(mesh, tasks_spec(mesh)))


def enter(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Arrays as `jax.shard_map` over `mesh` takes them with `spec`.

    It splits the arrays itself, except over an Explicit mesh, `jax.make_mesh`'s default, where it wants them
    split.
    """
    if AxisType.Explicit not in mesh.axis_types:
        return tree
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, NamedSharding(mesh, spec)), tree)


@typed
def num_tasks(*batched: Any) -> int:
    """How many tasks a batch holds: the leading axis that all its arrays share.

    **Arguments:** `*batched`, any PyTrees, such as a batch of tasks and their keys.

    **Returns:** the size of that axis, at least 1.

    **Raises:** `ValueError`, with the shapes, where the arrays have no leading axis in common, or there is no
    array.

    >>> import jax.numpy as jnp
    >>> num_tasks(jnp.ones((4, 3)), {"key": jnp.arange(4)})
    4
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(batched) if eqx.is_array(leaf)]
    if not shapes:
        raise ValueError("There is no array to count tasks by; tasks need a leading task axis on every array.")
    count = shapes[0][0] if shapes[0] else 0
    if count == 0 or any(shape[:1] != (count,) for shape in shapes):
        raise ValueError(
            "Every array of tasks and keys needs the same leading task axis, of at least one task, got "
            f"shapes {[list(shape) for shape in shapes]}. One task alone still needs that axis: "
            "jax.tree.map(lambda leaf: leaf[None], task)."
        )
    return count


def require_divisible(count: int, mesh: Mesh) -> None:
    if count % mesh.size != 0:
        raise ValueError(
            f"tasks holds {count} tasks, which cannot be split evenly over the {mesh.size} devices of the "
            f"mesh. Use a multiple of {mesh.size} tasks, or a smaller mesh, task_mesh(num_devices)."
        )
