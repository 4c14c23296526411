"""The meta-gradient over many tasks, on one device or many."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from metakit._algorithm import require_algorithm
from metakit._hyperparameter import marks
from metakit._typecheck import typed
from metakit._types import Scalar

from ._chunks import Chunk, choose_chunk, each_task, fold_chunks
from ._mesh import enter, num_tasks, require_divisible, tasks_spec


class MetaGradient(NamedTuple):
    """What `meta_gradient` returns.

    **Arguments:**

    - `loss`: the mean of `losses`, a scalar.
    - `gradient`: its gradient, a tree like the learner with `None` where there is no gradient.
    - `losses`: the meta-loss of every task, `[tasks]`.

    >>> MetaGradient._fields
    ('loss', 'gradient', 'losses')
    """

    loss: Scalar
    gradient: Any
    losses: Float[Array, " tasks"]


class Problem(NamedTuple):
    """A meta-gradient taken apart, so that only arrays cross a device boundary."""

    algorithm: Any
    moving: Any  # the arrays differentiated
    still: Any  # the other arrays
    static: Any  # what is not an array
    batched: tuple[Any, Any]  # tasks and keys, arrays only
    task_static: Any
    count: int


def take_apart(algorithm: Any, learner: Any, tasks: Any, keys: Any, trainable: Any) -> Problem:
    require_algorithm(algorithm)
    inexact = jax.tree.map(eqx.is_inexact_array, learner)
    mask = inexact if trainable is None or trainable is True else marks(trainable, learner)
    mask = jax.tree.map(lambda wanted, possible: bool(wanted) and possible, mask, inexact)
    moving, rest = eqx.partition(learner, mask)
    still, static = eqx.partition(rest, eqx.is_array)
    batched, task_static = eqx.partition((tasks, keys), eqx.is_array)
    return Problem(algorithm, moving, still, static, batched, task_static, num_tasks(batched))


def sum_over_tasks(problem: Problem, moving: Any, still: Any, batched: Any, chunk: int) -> tuple[Any, Any]:
    """Sum of the meta-gradients of the tasks at hand, and their losses."""

    def chunk_gradient(some):
        @eqx.filter_value_and_grad(has_aux=True)
        def total_loss(moving):
            learner = eqx.combine(moving, still, problem.static)

            def one(*arrays):
                task, key = eqx.combine(arrays, problem.task_static)
                return _scalar(problem.algorithm.meta_loss(learner, task, key))

            # One gradient of the sum, not a sum of gradients: the weights' gradient is then contracted over
            # the tasks inside each matrix product and never exists once for every task.
            losses = each_task(one, some, num_tasks(some))
            return jnp.sum(losses), losses

        (_, losses), gradient = total_loss(moving)
        return gradient, losses

    return fold_chunks(chunk_gradient, moving, batched, chunk)


def _scalar(loss: Any) -> Any:
    """Anything longer would be summed in silence, and train with a gradient so many times too large."""
    if jnp.shape(loss) != ():
        raise ValueError(
            f"meta_loss must return a scalar for a task, got shape {list(jnp.shape(loss))}. Return the mean over the "
            'query examples, such as losses.cross_entropy(..., reduction="mean").'
        )
    return loss


@typed
def meta_gradient(
    algorithm: Any,
    learner: Any,
    tasks: Any,
    keys: Any = None,
    *,
    trainable: Any = None,
    mesh: Mesh | None = None,
    chunk: Chunk = "auto",
) -> MetaGradient:
    r"""The mean meta-loss over tasks and its gradient, right by construction on any number of devices.

    $$L(\theta) = \frac{1}{T}\sum_{t=1}^{T} \ell(\theta, \mathcal{T}_t, k_t), \qquad g = \nabla_\theta L$$

    With a mesh, each device takes its share of the tasks, sums their gradients, and one all-reduce makes the
    mean; nothing else crosses between devices. On a device, tasks run in chunks whose gradients are
    accumulated, so memory is that of one chunk. Call it inside `eqx.filter_jit`, as you would `jax.grad`.

    **Arguments:**

    - `algorithm`: a module or `MetaLearner` with `adapt`, `predict` and `meta_loss`.
    - `learner`: its learner.
    - `tasks`: a batch of tasks: every array leads with the task axis, `[tasks, ...]`.
    - `keys`: one key per task, `[tasks]`, as `mk.random.task_keys` makes them; `None` (the default) for
      algorithms that need none.
    - `trainable`: which leaves to differentiate, a tree of booleans or a function from the learner to one, such as
      `mk.trainable`; `None` (the default) is every floating-point array. Leaves left out cost no memory, which
      matters for `FirstOrder`.
    - `mesh`: devices to spread the tasks over, from `task_mesh`; `None` (the default) is no spreading.
    - `chunk`: how many tasks of a device run at once: a number, which need not divide the number of tasks,
      `None` for all, or `"auto"` (the default): on a CPU, tasks of more than 4096 numbers (images) one after
      another and smaller ones all at once; elsewhere all at once.

    **Returns:** a `MetaGradient`. Its `losses` stay spread over the mesh; its `loss` and `gradient` are on
    every device.

    **Raises:** `ValueError` when tasks and keys disagree about the number of tasks, when the mesh does not
    divide it, when `trainable` does not fit the learner, for a `meta_loss` that is no scalar, or for a chunk
    below 1; `TypeError` for something that is no algorithm.

    >>> import jax.numpy as jnp, metakit as mk
    >>> algorithm = mk.MetaLearner(adapt=None, predict=None, meta_loss=lambda w, task, key=None: w * task)
    >>> result = meta_gradient(algorithm, jnp.asarray(2.0), jnp.asarray([1.0, 3.0]))
    >>> float(result.loss), float(result.gradient)
    (4.0, 2.0)
    """
    problem = take_apart(algorithm, learner, tasks, keys, trainable)
    if mesh is None:
        size = choose_chunk(chunk, problem.count, problem.batched, jax.default_backend())
        total, losses = sum_over_tasks(problem, problem.moving, problem.still, problem.batched, size)
        return mean_over_tasks(total, jnp.sum(losses), losses, problem.count)

    require_divisible(problem.count, mesh)
    axes = mesh.axis_names
    size = choose_chunk(chunk, problem.count // mesh.size, problem.batched, mesh.devices.flat[0].platform)
    everywhere, spread = PartitionSpec(), tasks_spec(mesh)

    # check_vma=False is what makes this right. With True, its default, a gradient taken inside with respect
    # to replicated arrays is summed over the devices, silently: inner gradients would mix the tasks of all
    # devices, and the outer one would be too large by their number. tests/sharding/test_traps.py holds both.
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(everywhere, everywhere, spread),
        out_specs=(everywhere, spread),
        check_vma=False,
    )
    def local(moving, still, batched):
        total, losses = sum_over_tasks(problem, moving, still, batched, size)
        return jax.lax.psum((total, jnp.sum(losses)), axes), losses

    moving, still = enter((problem.moving, problem.still), mesh, everywhere)
    (total, loss), losses = local(moving, still, enter(problem.batched, mesh, spread))
    return mean_over_tasks(total, loss, losses, problem.count)


def mean_over_tasks(total: Any, loss: Any, losses: Any, count: int) -> MetaGradient:
    return MetaGradient(loss / count, jax.tree.map(lambda leaf: leaf / count, total), losses)
