"""The functions under JAX's transformations, alone and together."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit.sharding import meta_gradient, meta_gradient_named, meta_gradient_pmap, task_mesh

from ._outcome import CheckFailed, CheckSkipped, check_of, require_close
from ._subject import Subject

_BRANCH = "Choose with jnp.where or jax.lax.cond instead of a Python `if` on values, and keep no state."


@check_of(_BRANCH)
def jit_equals_eager(subject: Subject) -> None:
    """A compiled call gives what the plain call gives.

    Catches Python branches on values, and state that a trace freezes.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.jit_equals_eager(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    args = subject.learner, subject.task(), subject.call_key()
    compiled = eqx.filter_jit(subject.everything)(*args)
    require_close(compiled, subject.everything(*args), subject, "Under jit the result is another", _BRANCH)


_ONE_TASK = "Write for one task, with jax.numpy alone, and leave the axis of tasks to eqx.filter_vmap."


@check_of(_ONE_TASK)
def vmap_equals_loop(subject: Subject) -> None:
    """Tasks together give what they give one by one.

    Catches a function that mixes tasks, or that counts the axis of tasks as examples.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.vmap_equals_loop(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    tasks, keys = subject.tasks(3), subject.keys(3)
    together = eqx.filter_jit(eqx.filter_vmap(subject.everything, in_axes=(None, 0, 0)))(subject.learner, tasks, keys)
    compiled = eqx.filter_jit(subject.everything)
    for i in range(3):
        alone = compiled(subject.learner, _entry(tasks, i), keys[i])
        require_close(_entry(together, i), alone, subject, f"Under vmap task {i} has another result", _ONE_TASK)


def _entry(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


_SMOOTH = (
    "Look for a stop_gradient on parameters, an argument closed over, or a kink such as ReLU's exactly where the "
    "learner stands (jnp.tanh has none). Where the gradient is meant to be another, say which: gradient=..."
)


@check_of(_SMOOTH)
def meta_gradient_equals_differences(subject: Subject) -> None:
    r"""The gradient of `meta_loss` equals central differences in float64, leaf by leaf.

    $$\langle \nabla_\theta \ell, d\rangle \approx \frac{\ell(\theta + h d) - \ell(\theta - h d)}{2h}$$

    along a random direction $d$ of each leaf, with $h = 10^{-6}$. Catches a dropped second order, a gradient stopped in
    the wrong place, and leaves without their gradient.

    **Arguments:** `subject`, a `Subject`; its `gradient` says what to compare with instead.

    **Raises:** `CheckFailed`; `CheckSkipped` for a learner without numbers, or one that does not run in float64.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.meta_gradient_equals_differences(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    learner, task, key = subject.learner, subject.task(), subject.call_key()
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(learner))):
        raise CheckSkipped("The learner holds no floating-point array.")
    gradient = eqx.filter_jit(eqx.filter_grad(subject.algorithm.meta_loss))(learner, task, key)

    if subject.gradient is not None:
        where, expected = subject.gradient(learner, task, key)
        require_close(where(gradient), expected, subject, "The meta-gradient is not the expected one", _SMOOTH)
        return
    if not subject.is_float64:
        raise CheckSkipped("Differences need float64; see runs_in_float64.")

    task = subject.as_held(task, key)
    params, static = eqx.partition(learner, eqx.is_inexact_array)
    paths, leaves = zip(*jax.tree.leaves_with_path(params), strict=True)
    structure, slopes = jax.tree.structure(params), jax.tree.leaves(gradient)

    @jax.jit
    def loss_along(leaves, directions, distance):
        moved = [leaf + distance * direction for leaf, direction in zip(leaves, directions, strict=True)]
        return subject.algorithm.meta_loss(eqx.combine(jax.tree.unflatten(structure, moved), static), task, key)

    # 1e-6: the truncation error, of order 1e-12, and rounding, 1e-10, are both far below the tolerance, and
    # with ReLU no kink lies this near.
    distance = 1e-6
    random = np.random.default_rng(0)
    scale = max(float(jnp.max(jnp.abs(slope))) for slope in slopes)
    if scale == 0:
        raise CheckFailed(
            "The gradient is zero in every leaf: meta_loss does not depend on the learner.",
            "Use the learner that is given, not one that is closed over, and stop no gradient on its way.",
        )
    for moved, path in enumerate(paths):
        directions = [
            random.normal(size=leaf.shape) if i == moved else np.zeros(leaf.shape) for i, leaf in enumerate(leaves)
        ]
        ahead, behind = (loss_along(list(leaves), directions, sign * distance) for sign in (1.0, -1.0))
        slope, difference = jnp.sum(slopes[moved] * directions[moved]), (ahead - behind) / (2 * distance)
        if not abs(slope - difference) <= 1e-6 * abs(difference) + 1e-7 * scale:
            raise CheckFailed(
                f"Along learner{jax.tree_util.keystr(path)} the gradient is {slope:.9g}, differences give "
                f"{difference:.9g}.",
                _SMOOTH,
            )


@check_of(_ONE_TASK)
def gradient_of_mean_equals_mean_of_gradients(subject: Subject) -> None:
    """The gradient of the mean loss of four tasks is the mean of their gradients.

    Catches tasks that leak into each other's gradient under vmap.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.gradient_of_mean_equals_mean_of_gradients(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    one = eqx.filter_vmap(eqx.filter_grad(subject.algorithm.meta_loss), in_axes=(None, 0, 0))
    gradients = eqx.filter_jit(one)(subject.learner, subject.tasks(4), subject.keys(4))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
    require_close(subject.reference.gradient, mean, subject, "The gradient of the mean is another", _ONE_TASK)


@check_of("Use one form of each operation whether tasks are mapped or not.")
def one_at_a_time_equals_all_at_once(subject: Subject) -> None:
    """The meta-gradient of tasks run one after another is that of tasks run together.

    Catches a difference between the mapped and the plain form of an operation, such as per-task convolution.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.one_at_a_time_equals_all_at_once(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    run = eqx.filter_jit(functools.partial(meta_gradient, subject.algorithm, chunk=1))
    result = run(subject.learner, subject.tasks(4), subject.keys(4))
    require_close(
        result._asdict(), subject.reference._asdict(), subject, "One task at a time the result is another", _ONE_TASK
    )


def _by_shard_map(*args: Any, **options: Any) -> Any:
    return eqx.filter_jit(meta_gradient)(*args, **options)


WAYS: dict[str, Callable[..., Any]] = {
    "shard_map": _by_shard_map,
    "pmap": meta_gradient_pmap,
    "NamedSharding": meta_gradient_named,
}

_DEVICES = "Place no array on a device inside the functions, and read no number of devices there."


@check_of(_DEVICES)
def devices_agree(subject: Subject, ways: tuple[str, ...] = tuple(WAYS)) -> None:
    """The meta-gradient of tasks spread over two devices is that of one device.

    Catches a learner that is wrong only when tasks are spread: closed-over devices, inner gradients summed.

    **Arguments:**

    - `subject`: a `Subject`.
    - `ways`: of spreading, any of `"shard_map"`, `"pmap"` and `"NamedSharding"`; default all three.

    **Raises:** `CheckFailed`; `CheckSkipped` where there is one device.

    >>> import jax, metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> if len(jax.devices()) > 1:
    ...     mk.testing.devices_agree(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    if len(jax.devices()) < 2:
        raise CheckSkipped(
            "There is one device; on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count=2 before JAX starts."
        )
    mesh = task_mesh(2)
    for way in ways:
        spread = WAYS[way](subject.algorithm, subject.learner, subject.tasks(4), subject.keys(4), mesh=mesh, chunk=None)
        require_close(
            spread._asdict(), subject.reference._asdict(), subject, f"On two devices by {way} it is another", _DEVICES
        )


@check_of("Make every number of the learner an array, with mk.fixed or mk.learned.")
def one_trace_over_changed_leaves(subject: Subject) -> None:
    """A learner with other numbers, and another task, use the same compiled program, and give another loss.

    Catches numbers that are part of the program: a new rate, or the second training step, would compile again.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.one_trace_over_changed_leaves(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    traces = 0

    @eqx.filter_jit
    def loss(learner, task, key):
        nonlocal traces
        traces += 1
        return subject.algorithm.meta_loss(learner, task, key)

    moved = jax.tree.map(
        lambda leaf: leaf * 1.01 if eqx.is_inexact_array(leaf) or isinstance(leaf, float) else leaf, subject.learner
    )
    values = [
        loss(learner, subject.sampler(jax.random.key(subject.seed + i)), jax.random.key(i))
        for i, learner in enumerate([subject.learner, moved])
    ]
    if traces != 1:
        raise CheckFailed(
            f"Two learners that differ in their numbers alone were traced {traces} times.",
            "Make every number a strongly typed array: mk.fixed(...), mk.learned(...).",
        )
    if values[0] == values[1]:
        raise CheckFailed(
            f"Another learner on another task has the same loss, {float(values[0]):.6g}.",
            "Use the arguments, not something closed over.",
        )
