"""Each query asked alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


class Network(eqx.Module):
    """A convolution, batch norm and a linear map: the least that shares statistics."""

    convolution: mk.nn.Conv2d
    norm: mk.nn.BatchStatNorm
    head: mk.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.convolution, self.norm = mk.nn.Conv2d(1, 4, 3, key=first), mk.nn.BatchStatNorm(4)
        self.head = mk.nn.Linear(64, 3, key=second)

    def __call__(self, x):
        maps = mk.nn.max_pool2d(jax.nn.relu(self.norm(self.convolution(x))))
        return self.head(maps.reshape(len(x), -1))


def learner(policy):
    network = Network(jax.random.key(0))
    return mk.maml.MAML(network, inner=mk.inner.SGD(0.1), num_steps=1, norm_policy=policy)


def task():
    support, query = jax.random.normal(jax.random.key(1), (2, 6, 1, 8, 8))
    labels = jnp.arange(6) % 3
    return mk.Episode(mk.Examples(support, labels, way=3), mk.Examples(query, labels, way=3))


def answers(algorithm, module, key=None):
    return algorithm.predict(algorithm.adapt(module, task().support), task().query.x, key)


alone = mk.evaluate.one_at_a_time(mk.maml)


def test_without_shared_statistics_nothing_changes():
    """Catches another answer for a learner whose queries never saw each other."""
    module = learner("inductive")
    np.testing.assert_allclose(answers(alone, module), answers(mk.maml, module), rtol=1e-12, atol=1e-12)


def test_with_shared_statistics_each_query_has_its_own():
    """Catches queries that still see each other under a transductive policy, and one asked with another's row."""
    module = learner("transductive")
    adapted = mk.maml.adapt(module, task().support)
    loop = jnp.concatenate([mk.maml.predict(adapted, task().query.x[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(answers(alone, module), loop, rtol=1e-12, atol=1e-12)
    assert jnp.all(jnp.any(jnp.abs(loop - answers(mk.maml, module)) > 1e-2, axis=1))


def test_only_predict_is_another():
    """Catches a loss or an adaptation that is wrapped too, which would train another learner."""
    assert (alone.adapt, alone.meta_loss) == (mk.maml.adapt, mk.maml.meta_loss)
    assert alone.predict != mk.maml.predict


noise = mk.MetaLearner(
    adapt=lambda learner, support, key=None: learner,
    predict=lambda adapted, x, key=None: {"noise": x["mean"] + adapted + jax.random.uniform(key, x["mean"].shape)},
    meta_loss=lambda learner, task, key=None: jnp.zeros(()),
)


def test_each_query_has_a_key_of_its_own():
    """Catches one key for all queries, whose noise would then be the same, keys that depend on how many queries are
    asked, and inputs or predictions that must be one array."""
    algorithm, key = mk.evaluate.one_at_a_time(noise), jax.random.key(2)
    few, many = (algorithm.predict(1.0, {"mean": jnp.zeros(n)}, key)["noise"] for n in (3, 5))
    assert len(set(many.tolist())) == 5
    np.testing.assert_array_equal(many[:3], few)
    np.testing.assert_array_equal(few[1], 1 + jax.random.uniform(jax.random.fold_in(key, 1), (1,))[0])


def test_the_same_algorithm_compiles_once():
    """Catches a wrapper that is another function each time, and one that takes all algorithms for the same."""
    traces = []

    @eqx.filter_jit
    def score(algorithm, module):
        traces.append(algorithm)
        return answers(algorithm, module).sum()

    first, second = mk.evaluate.one_at_a_time(mk.maml), mk.evaluate.one_at_a_time(mk.maml)
    assert first == second
    assert hash(first) == hash(second)
    assert first != mk.evaluate.one_at_a_time(mk.reptile)
    module = learner("inductive")
    score(first, module)
    score(second, module)
    assert len(traces) == 1


def test_scores_take_it():
    """Catches an algorithm that evaluation refuses: its score of a transductive learner is that of a loop."""
    module = learner("transductive")
    accuracy = {"accuracy": mk.metrics.accuracy}
    sampler = lambda key: task()
    score = mk.evaluate.scores(alone, module, sampler, jax.random.key(0), num_tasks=1, metrics=accuracy)["accuracy"]
    assert score[0] == mk.metrics.accuracy(answers(alone, module), task().query.y)


def test_what_is_no_algorithm_is_refused():
    """Catches a learner given in place of its algorithm."""
    with pytest.raises(TypeError, match="must hold adapt, predict and meta_loss"):
        mk.evaluate.one_at_a_time(learner("inductive"))
