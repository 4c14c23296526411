"""The compiler options: used where they may be, left out where JAX refuses them."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

PULL = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
SGD = optax.sgd(0.1)


def train(position):
    state = mk.train.init(position, SGD, key=jax.random.key(0))
    return mk.train.run_steps(PULL, SGD, state, jax.random.normal, num_steps=2, meta_batch=2)[0].learner


def test_a_compiled_loop_works_under_every_transformation():
    """Catches options given to a nested jit, which JAX refuses: a user's jit around the training loop."""
    alone = train(jnp.zeros(()))
    # No argument of the loop is a tracer here, only its surroundings are traced.
    closed_over = jax.jit(lambda: train(jnp.zeros(())))()
    together = jax.vmap(train)(jnp.zeros(3))
    assert jnp.allclose(closed_over, alone)
    assert jnp.allclose(together, alone)
    assert jnp.isfinite(jax.grad(lambda p: jnp.sum(eqx.filter_jit(train)(p)))(jnp.zeros(())))


WHAT_IS_COMPILED = """
import jax, jax.numpy as jnp, metakit as mk
x, w = jnp.ones((120, 14, 14, 64), jnp.float32), jnp.ones((3, 3, 64, 64), jnp.float32)
def convolve(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
for options in (None, mk.compiler_options()):
    print("__ynn_fusion" in jax.jit(convolve, compiler_options=options).lower(x, w).compile().as_text())
"""


@pytest.mark.parametrize(("devices", "replaced"), [(1, True), (2, False)])
def test_the_options_replace_the_convolution_that_uses_one_core(devices, replaced):
    """Catches a renamed XLA flag, which would halve the speed unnoticed, a default that no longer needs the options,
    and options where several devices would mix up their results.

    The compiled text is asked, not a clock: beside other work one core is all that anything gets."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"} | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run([sys.executable, "-c", WHAT_IS_COMPILED], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", str(not replaced)], done.stderr[-2000:]


@pytest.mark.optimised
@pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")
def test_devices_do_not_write_into_each_other_s_convolutions():
    """Catches rows of a task's outputs that hold another device's numbers: a third of these tasks had some, under the
    convolution that uses all cores. It takes a wide network and weights of the task's own."""
    mesh = mk.sharding.task_mesh(2)
    pool = mk.tasks.ImagePool(np.random.default_rng(0).integers(0, 255, (30, 20, 1, 28, 28), dtype="uint8"))
    tasks = mk.tasks.Episodes(pool, way=5, shot=1, queries=15)
    with jax.enable_x64(False):
        network = mk.nn.Conv4(1, 28, out_size=5, width=64, stride=2, norm=mk.nn.BatchStatNorm, key=jax.random.key(0))
        learner = mk.reptile.Reptile(network, inner=mk.inner.SGD(0.01), num_steps=2, norm_policy="inductive")

        def outputs(learner, task, key):
            return mk.reptile.predict(mk.reptile.adapt(learner, task.support, key), task.query.x, key)

        def of_all(learner, mesh):
            function = eqx.Partial(outputs, learner)
            return np.asarray(mk.evaluate.scores_of(function, tasks, jax.random.key(7), num_tasks=100, mesh=mesh))

        alone = of_all(learner, None)
        for spread in (of_all(learner, mesh), of_all(mk.sharding.replicate(learner, mesh), None)):
            np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-3 * np.abs(alone).max())
