"""Scratch memory of whole compiled steps, by XLA's own account: the figures of docs/performance.md."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

pytestmark = [pytest.mark.slow, pytest.mark.optimised]

MIB = 2**20


@pytest.fixture(autouse=True)
def single_precision():
    """As users run it: half the memory of the tests' usual precision."""
    with jax.enable_x64(False):
        yield


def tasks_of(count, queries, size, channels=1, way=5):
    def examples(per_class):
        images = jnp.zeros((count, way * per_class, channels, size, size), jnp.float32)
        return images, jnp.zeros((count, way * per_class), jnp.int32)

    def episode(sx, sy, qx, qy):
        return mk.Episode(mk.Examples(sx, sy, way=way), mk.Examples(qx, qy, way=way))

    return eqx.filter_vmap(episode)(*examples(1), *examples(queries))


def scratch(learner, tasks):
    """Bytes of one training step."""
    optimiser = optax.adam(1e-3)
    state = mk.train.init(learner, optimiser, key=jax.random.key(0))

    @eqx.filter_jit(compiler_options=mk.compiler_options())
    def step(state, tasks):
        return mk.train.step(mk.maml, optimiser, state, tasks)

    compiled = step.lower(state, tasks).compile().compiled
    return compiled.memory_analysis().temp_size_in_bytes


def test_tasks_do_not_add_up():
    """A chunk that grows with the batch of tasks, or activations kept for all of them: 8 times 62 MiB for W3."""
    network = mk.nn.Conv4(1, 28, out_size=5, key=jax.random.key(0))
    learner = mk.maml.MAML(network, inner=mk.inner.SGD(0.4), num_steps=1)
    few, many = (scratch(learner, tasks_of(count, 15, 28)) for count in (8, 64))
    assert few < 120 * MIB
    assert many - few < MIB


@pytest.mark.parametrize(
    ("adjoint", "states"),
    [
        # States kept for K steps, beyond those for 5.
        (mk.inner.MixedMode(), lambda k: k - 5),
        (mk.inner.Checkpointed(), lambda k: 2 * (np.sqrt(k) - np.sqrt(5)) + 1),
    ],
    ids=["MixedMode", "Checkpointed"],
)
def test_inner_steps_cost_what_the_docs_say(adjoint, states):
    """Activations kept for every step, under an adjoint that promises not to."""
    network = mk.nn.Conv4(3, 28, out_size=5, width=32, key=jax.random.key(0))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(network) if eqx.is_array(leaf))

    def at(steps):
        learner = mk.maml.MAML(network, inner=mk.inner.SGD(0.01), num_steps=steps, adjoint=adjoint)
        return scratch(learner, tasks_of(2, 3, 28, channels=3))

    base = at(5)
    for steps in (20, 80):
        assert at(steps) - base < 1.1 * states(steps) * size + 64 * 2**10
