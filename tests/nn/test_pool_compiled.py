"""Max-pooling inside a compiled inner loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


def episode(key):
    support_key, query_key = jax.random.split(key)
    labels = jnp.arange(2, dtype=jnp.int32)
    support = mk.Examples(jax.random.normal(support_key, (2, 1, 16, 16)), labels, 2)
    return mk.Episode(support, mk.Examples(jax.random.normal(query_key, (4, 1, 16, 16)), jnp.repeat(labels, 2), 2))


@pytest.mark.slow
@pytest.mark.optimised
def test_compiled_and_mapped_adaptation_equals_a_loop():
    """Catches a maximum whose derivative compares floats that XLA recomputed: the loss was off by 0.03."""
    network = mk.nn.Conv4(1, 16, width=3, out_size=2, key=jax.random.key(0))
    learner = mk.maml.MAML(network, inner=mk.inner.SGD(0.1), num_steps=2)
    tasks = eqx.filter_vmap(episode)(jax.random.split(jax.random.key(1), 3))
    one = eqx.filter_jit(mk.maml.meta_loss)
    loop = [one(learner, jax.tree.map(lambda leaf, i=i: leaf[i], tasks)) for i in range(3)]
    mapped = eqx.filter_jit(eqx.filter_vmap(mk.maml.meta_loss, in_axes=(None, 0)))(learner, tasks)
    np.testing.assert_allclose(mapped, jnp.stack(loop), rtol=1e-12)
