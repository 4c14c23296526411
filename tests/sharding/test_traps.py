"""Two silent traps of gradients inside `jax.shard_map`, each shown wrong without its cure and right with it.

Should JAX change, the "wrong" halves fail: then the comments in metakit/sharding/_gradient.py need a new
look.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_maml import ALGORITHM, by_hand, inner_loss, make_learner, make_tasks, meta_loss

from metakit.sharding import meta_gradient, task_mesh

NUM_DEVICES = 2


def over_devices(function, *, check_vma):
    """A user's own shard_map: one task per device, the learner replicated."""
    learner, tasks = make_learner(), make_tasks(NUM_DEVICES)
    arrays, static = eqx.partition(learner, eqx.is_inexact_array)

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=task_mesh(NUM_DEVICES),
        in_specs=(P(), P("task")),
        out_specs=P(),
        check_vma=check_vma,
    )
    def run(arrays, tasks):
        return function(arrays, static, jax.tree.map(lambda leaf: leaf[0], tasks))

    return run(arrays, tasks)


def mean_meta_loss(arrays, static, task):
    return jax.lax.pmean(meta_loss(eqx.combine(arrays, static), task), "task")


def varying(arrays):
    return jax.lax.pcast(arrays, "task", to="varying")


@pytest.mark.parametrize(
    ("check_vma", "enter", "right"),
    [(True, lambda arrays: arrays, False), (True, varying, True), (False, lambda arrays: arrays, True)],
    ids=["bare", "pcast", "check_vma=False"],
)
def test_trap_1_inner_gradients_are_summed_over_devices(check_vma, enter, right):
    """The inner gradient of one task becomes the sum over all devices' tasks: another loss, and no error."""
    loss = over_devices(lambda a, static, task: mean_meta_loss(enter(a), static, task), check_vma=check_vma)
    learner, tasks = make_learner(), make_tasks(NUM_DEVICES)
    assert np.isclose(loss, by_hand(learner, tasks)[0], rtol=1e-12) == right
    if not right:  # exactly the sum over devices, not some other error
        weights = learner["weights"]
        summed = jnp.sum(jax.vmap(jax.grad(inner_loss), (None, 0))(weights, tasks.support), axis=0)
        wrong = jax.vmap(inner_loss, (None, 0))(weights - learner["rate"].value * summed, tasks.query)
        np.testing.assert_allclose(loss, jnp.mean(wrong) * learner["scale"], rtol=1e-12)


@pytest.mark.parametrize(
    ("check_vma", "enter", "factor"),
    [(True, lambda weights: weights, NUM_DEVICES), (True, varying, 1), (False, lambda weights: weights, 1)],
    ids=["bare", "pcast", "check_vma=False"],
)
def test_trap_2_the_mean_of_gradients_is_too_large_by_the_number_of_devices(check_vma, enter, factor):
    """`pmean(grad(local_loss))` of replicated weights: they are summed already, so the mean does nothing."""

    def gradient(arrays, static, task):
        del static
        return jax.lax.pmean(jax.grad(inner_loss)(enter(arrays["weights"]), task.query), "task")

    found = over_devices(gradient, check_vma=check_vma)
    weights, tasks = make_learner()["weights"], make_tasks(NUM_DEVICES)
    expected = jnp.mean(jax.vmap(jax.grad(inner_loss), (None, 0))(weights, tasks.query), axis=0)
    np.testing.assert_allclose(found, factor * expected, rtol=1e-12)


def test_the_toolkits_own_gradient_has_neither():
    """Catches `check_vma=True` in `meta_gradient`: with it both traps spring."""
    learner, tasks = make_learner(), make_tasks(NUM_DEVICES)
    result = meta_gradient(ALGORITHM, learner, tasks, mesh=task_mesh(NUM_DEVICES))
    loss, gradient, _ = by_hand(learner, tasks)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-12)
    np.testing.assert_allclose(result.gradient["weights"], gradient["weights"], rtol=1e-12)


def test_error_if_passes_through():
    """Catches `check_vma=True`, under which `eqx.error_if` fails with a TypeError about cond branches."""

    def checked(learner, task, key=None):
        loss = meta_loss(learner, task, key)
        return eqx.error_if(loss, loss < 0, "a loss below zero")

    result = meta_gradient(ALGORITHM._replace(meta_loss=checked), make_learner(), make_tasks(2), mesh=task_mesh(2))
    assert np.isfinite(result.loss)
