"""Each query asked alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

IMAGES = mk.tasks.ImagePool(np.random.default_rng(0).integers(0, 255, (6, 8, 1, 16, 16), "uint8"))
EPISODES = mk.tasks.Episodes(IMAGES, 3, 2, 2)


def learner(policy):
    network = mk.nn.Conv4(1, 16, out_size=3, width=4, key=jax.random.key(0))
    return mk.maml.MAML(network, inner=mk.inner.SGD(0.1), num_steps=1, loss=mk.losses.cross_entropy, norm_policy=policy)


def logits(algorithm, module, key=None):
    task = EPISODES(jax.random.key(1))
    return algorithm.predict(algorithm.adapt(module, task.support, key), task.query.x, key)


@pytest.mark.parametrize(("policy", "same"), [("transductive", False), ("inductive", True)])
def test_only_shared_statistics_make_a_difference(policy, same):
    """Catches queries that still see each other, and an inductive learner that is given another answer."""
    module = learner(policy)
    together, alone = (logits(one, module) for one in (mk.maml, mk.evaluate.one_at_a_time(mk.maml)))
    assert bool(jnp.allclose(together, alone, atol=1e-9)) == same


def test_alone_is_a_loop_over_queries():
    """Catches a query that is asked with another's row."""
    module, task = learner("transductive"), EPISODES(jax.random.key(1))
    adapted = mk.maml.adapt(module, task.support)
    loop = jnp.concatenate([mk.maml.predict(adapted, task.query.x[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(logits(mk.evaluate.one_at_a_time(mk.maml), module), loop, atol=1e-9)


def test_keys_differ_by_query():
    """Catches one key for all queries, whose noise would then be the same."""
    noise = mk.MetaLearner(
        lambda learner, support, key=None: None,
        lambda adapted, x, key=None: jax.random.normal(key, (len(x), 2)),
        lambda learner, task, key=None: jnp.zeros(()),
    )
    outputs = logits(mk.evaluate.one_at_a_time(noise), None, jax.random.key(2))
    assert len(np.unique(np.asarray(outputs))) == outputs.size


def test_the_same_algorithm_compiles_once():
    """Catches a wrapper that is another function each time."""
    traces = []

    @eqx.filter_jit
    def score(algorithm, module):
        traces.append(algorithm)
        return logits(algorithm, module).sum()

    module = learner("inductive")
    score(mk.evaluate.one_at_a_time(mk.maml), module)
    score(mk.evaluate.one_at_a_time(mk.maml), module)
    assert len(traces) == 1


def test_what_is_no_algorithm_is_refused():
    """Catches a learner given in place of its algorithm."""
    with pytest.raises(TypeError, match="must hold adapt, predict and meta_loss"):
        mk.evaluate.one_at_a_time(learner("inductive"))
