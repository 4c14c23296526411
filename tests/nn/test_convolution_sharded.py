"""Convolution on two devices, where JAX must know over which of them a value varies."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from metakit.nn._convolution import convolve

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2,), ("task",), axis_types=(kind,), devices=jax.devices()[:2])


def loss(w, x):
    return jnp.sum(jnp.sin(convolve(x, w, stride=(1, 1), padding=((1, 1), (1, 1)))))


def adapted_loss(w, x):
    return loss(w - 0.1 * jax.grad(loss)(w, x), x)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


W, TASKS = draw(3, 3, 2, 3, seed=1), draw(4, 2, 5, 5, 2)


def expected(f):
    return jax.vmap(f, (None, 0))(W, TASKS).mean(0)


@pytest.mark.parametrize("over_tasks", ["vmap", "scan"])
@pytest.mark.parametrize("check_vma", [False, True])
def test_meta_gradient_in_shard_map(check_vma, over_tasks):
    """A primitive that forgets over which devices its operands vary: cotangents are refused."""

    def local(w, x):
        if check_vma:
            w = jax.lax.pcast(w, "task", to="varying")
        one = jax.grad(adapted_loss)
        g = jax.vmap(one, (None, 0))(w, x) if over_tasks == "vmap" else jax.lax.map(lambda x: one(w, x), x)
        return jax.lax.pmean(g.mean(0), "task")

    sharded = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("task")), out_specs=P(), check_vma=check_vma)
    np.testing.assert_allclose(jax.jit(sharded)(W, TASKS), expected(jax.grad(adapted_loss)), atol=1e-10)


def test_replicated_weights_meet_varying_images():
    """The silent one: without a cast of the weights, check_vma=True gave wrong value and gradient."""

    def total(w, x):
        return jax.lax.psum(jnp.sum(jax.vmap(loss, (None, 0))(w, x)), "task")

    sharded = jax.shard_map(total, mesh=mesh(), in_specs=(P(), P("task")), out_specs=P(), check_vma=True)
    value, gradient = jax.jit(jax.value_and_grad(sharded))(W, TASKS)
    np.testing.assert_allclose(value, 4 * expected(loss), atol=1e-10)
    np.testing.assert_allclose(gradient, 4 * expected(jax.grad(loss)), atol=1e-10)


def test_named_sharding():
    """XLA's partitioner splitting the patches wrongly, or gathering every task on every device."""
    x = jax.device_put(TASKS, NamedSharding(mesh(), P("task")))
    w = jax.device_put(W, NamedSharding(mesh(), P()))
    program = jax.jit(lambda w, x: jax.vmap(jax.grad(adapted_loss), (None, 0))(w, x).mean(0)).lower(w, x).compile()
    np.testing.assert_allclose(program(w, x), expected(jax.grad(adapted_loss)), atol=1e-10)
    assert len(re.findall(r"= \S+ all-reduce(?:-start)?\(", program.as_text())) == 1
    assert "all-gather" not in program.as_text()


def test_explicit_mesh_is_refused_with_the_cure():
    """An Explicit mesh, jax.make_mesh's default, ending in an error about an axis of an empty mesh."""
    explicit = mesh(AxisType.Explicit)
    x = jax.device_put(TASKS[0], NamedSharding(explicit, P("task")))
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=r"Explicit mesh.*task_mesh.*shard_map"):
        jax.jit(loss)(W, x)


def test_shard_map_on_an_explicit_mesh():
    """The cure named above not working on the very mesh it is named for."""
    explicit = mesh(AxisType.Explicit)
    x = jax.device_put(TASKS, NamedSharding(explicit, P("task")))

    @jax.shard_map(mesh=explicit, in_specs=(P(), P("task")), out_specs=P(), check_vma=False)
    def sharded(w, x):
        return jax.lax.pmean(jax.vmap(jax.grad(adapted_loss), (None, 0))(w, x).mean(0), "task")

    np.testing.assert_allclose(jax.jit(sharded)(W, x), expected(jax.grad(adapted_loss)), atol=1e-10)
