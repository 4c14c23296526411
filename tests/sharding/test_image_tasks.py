"""Episodes of images drawn on several devices: the pool is an array that every device has to reach."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


def episodes():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 1, 4, 4), dtype="uint8")
    return mk.tasks.Episodes(mk.tasks.ImagePool(images), way=3, shot=1, queries=2)


class Flat(eqx.Module):
    """An embedding of flattened images."""

    network: mk.nn.MLP

    def __call__(self, x):
        return self.network(x.reshape(x.shape[0], -1).astype(jnp.float64))


def test_training_and_evaluation_on_two_devices_equal_one():
    """A pool on a mesh that meets `shard_map` as a closure: the step, and every `--devices 2` of images, raised."""
    network = Flat(mk.nn.MLP(16, 4, 8, 1, key=jax.random.key(0)))
    learner = mk.prototypical.Prototypical(network, norm_policy="transductive")
    optimiser = optax.sgd(0.1)
    ends = []
    for mesh in (None, mk.sharding.task_mesh(2)):
        state = mk.train.init(learner, optimiser, key=jax.random.key(1))
        options = {"num_steps": 2, "meta_batch": 4, "mesh": mesh}
        state, _ = mk.train.run_steps(mk.prototypical, optimiser, state, episodes(), **options)
        scores = mk.evaluate.scores(
            mk.prototypical,
            state.learner,
            episodes(),
            jax.random.key(2),
            num_tasks=6,
            metrics={"accuracy": mk.metrics.accuracy},
            mesh=mesh,
        )
        ends.append((eqx.filter(state.learner, eqx.is_array), scores["accuracy"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-12), *ends)
