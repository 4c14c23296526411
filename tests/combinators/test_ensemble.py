"""Golden identities of ensembles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

SINUSOID = mk.tasks.Sinusoid(shot=5, queries=5)
CURVES = mk.tasks.GaussianProcessCurves(shot=(2, 5), queries=5)


def clusters(key, way=3, shot=2, queries=4):
    mean_key, noise_key = jax.random.split(key)
    x = jax.random.normal(mean_key, (way, 1, 2)) + jax.random.normal(noise_key, (way, shot + queries, 2))
    y = jnp.broadcast_to(jnp.arange(way, dtype=jnp.int32)[:, None], x.shape[:2])
    part = lambda s: mk.Examples(x[:, s].reshape(-1, 2), y[:, s].reshape(-1), way=way)
    return mk.Episode(part(slice(None, shot)), part(slice(shot, None)))


def prototypical(key):
    return mk.prototypical.Prototypical(mk.nn.MLP(2, 4, 8, 1, jnp.tanh, key=key))


def regressor(key):
    model = mk.nn.MLP(1, 1, 8, 1, jnp.tanh, key=key)
    return mk.maml.MAML(model, inner=mk.inner.SGD(0.05), num_steps=2, loss=mk.losses.squared_error)


def process(key):
    return mk.neural_process.NeuralProcess(1, 1, width=8, encoder_depth=1, decoder_depth=1, key=key)


KINDS = {
    "classes": (mk.prototypical, prototypical, clusters),
    "real values": (mk.maml, regressor, SINUSOID),
    "densities": (mk.neural_process, process, CURVES),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def predictions(algorithm, learner, task):
    return algorithm.predict(algorithm.adapt(learner, task.support), task.query.x)


def members(make, count=3):
    return [make(key) for key in jax.random.split(jax.random.key(0), count)]


def assert_close(actual, expected, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


@each_kind
def test_equal_members_are_the_member(kind):
    """Catches a sum in place of a mean, a missing log M, and a variance that counts the members' spread wrongly."""
    algorithm, make, sampler = KINDS[kind]
    member, task = make(jax.random.key(1)), sampler(jax.random.key(2))
    together = mk.Ensemble([member, member, member])
    alone = predictions(algorithm, member, task)
    expected = jax.nn.log_softmax(alone, axis=-1) if kind == "classes" else alone
    assert_close(predictions(mk.ensemble(algorithm), together, task), expected)
    assert_close(mk.ensemble(algorithm).meta_loss(together, task), algorithm.meta_loss(member, task))


def test_probabilities_are_averaged():
    """Catches an average of logits, which is a geometric mean of the probabilities."""
    task, learners = clusters(jax.random.key(2)), members(prototypical)
    each = [jax.nn.softmax(predictions(mk.prototypical, learner, task), axis=-1) for learner in learners]
    together = predictions(mk.ensemble(mk.prototypical), mk.Ensemble(learners), task)
    assert_close(jnp.exp(together), sum(each) / 3)


def test_real_values_are_averaged():
    """Catches regression outputs that are taken for logits."""
    task, learners = SINUSOID(jax.random.key(2)), members(regressor)
    each = [predictions(mk.maml, learner, task) for learner in learners]
    assert_close(predictions(mk.ensemble(mk.maml), mk.Ensemble(learners), task), sum(each) / 3)


def test_densities_have_the_moments_of_the_mixture():
    """Catches a mean of variances that forgets how far the members are apart; against draws of the mixture itself."""
    task, learners = CURVES(jax.random.key(2)), members(process)
    together = predictions(mk.ensemble(mk.neural_process), mk.Ensemble(learners), task)
    each = [predictions(mk.neural_process, learner, task) for learner in learners]
    count = 40_000
    draws = np.concatenate(
        [np.random.default_rng(i).normal(one.mean, one.scale, (count, *one.shape)) for i, one in enumerate(each)]
    )
    # Three draws a standard error, at most, of a mean and of a standard deviation of 120,000 draws.
    error = np.asarray(together.scale) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - together.mean) < 4.5 * error)
    assert np.all(np.abs(draws.std(axis=0) - together.scale) < 4.5 * error)


def test_the_ensemble_is_never_more_surprised_than_its_members_are_on_average():
    """Catches averages that are no mean of probabilities, for which Jensen's inequality fails on some tasks."""
    learners = members(prototypical, count=5)
    together, surprise = mk.Ensemble(learners), mk.metrics.negative_log_likelihood

    @eqx.filter_jit
    def gap(task):
        each = [surprise(predictions(mk.prototypical, learner, task), task.query.y) for learner in learners]
        whole = surprise(predictions(mk.ensemble(mk.prototypical), together, task), task.query.y)
        return jnp.mean(jnp.stack(each)) - whole

    gaps = eqx.filter_vmap(gap)(eqx.filter_vmap(clusters)(jax.random.split(jax.random.key(3), 200)))
    assert jnp.min(gaps) >= 0
    assert jnp.max(gaps) > 1e-3


def test_members_learn_as_if_alone():
    """Catches a gradient that crosses between members, or is not 1/M of the member's own."""
    task, learners = SINUSOID(jax.random.key(2)), members(regressor)
    together = eqx.filter_grad(mk.ensemble(mk.maml).meta_loss)(mk.Ensemble(learners), task)
    for i, learner in enumerate(learners):
        alone = eqx.filter_grad(mk.maml.meta_loss)(learner, task)
        assert_close(jax.tree.map(lambda leaf, i=i: 3 * leaf[i], together.members), alone)


def test_a_random_member_gets_a_key_of_its_own():
    """Catches one key for all members, whose equal draws leave nothing to average."""
    noisy = mk.MetaLearner(
        adapt=lambda learner, support, key=None: learner + jax.random.normal(key),
        predict=lambda adapted, x, key=None: jnp.broadcast_to(adapted, (len(x), 1)),
        meta_loss=lambda learner, task, key=None: learner + jax.random.normal(key),
    )
    algorithm, support = mk.ensemble(noisy), SINUSOID(jax.random.key(0)).support
    learner = mk.Ensemble([jnp.zeros(())] * 3)
    adapted = algorithm.adapt(learner, support, jax.random.key(1))
    assert len(set(np.asarray(adapted.members).tolist())) == 3


def test_two_calls_give_one_algorithm_and_one_program():
    """Catches an algorithm that is new with every call: training and evaluation would compile again each time."""
    assert mk.ensemble(mk.maml) == mk.ensemble(mk.maml)
    assert hash(mk.ensemble(mk.maml)) == hash(mk.ensemble(mk.maml))
    assert mk.ensemble(mk.maml).adapt == mk.ensemble(mk.maml).adapt
    assert mk.ensemble(mk.maml) != mk.ensemble(mk.reptile)
    assert mk.tempered(mk.ensemble(mk.maml)) == mk.tempered(mk.ensemble(mk.maml))
    assert mk.ensemble(mk.maml) != mk.tempered(mk.maml)
    assert mk.tempered(mk.ensemble(mk.maml)).__name__ == "tempered(ensemble(metakit.learners.maml))"
    traces = []

    def adapt(learner, support, key=None):
        traces.append(1)
        return mk.maml.adapt(learner, support, key)

    base = mk.MetaLearner(adapt, mk.maml.predict, mk.maml.meta_loss)
    counts = []
    for _ in range(2):
        algorithm = mk.tempered(mk.ensemble(mk.MetaLearner(*base)))
        again = mk.Ensemble(members(classifier))
        mk.evaluate.scores(
            algorithm, mk.Tempered(again), clusters, jax.random.key(0), num_tasks=3, metrics={"a": mk.metrics.accuracy}
        )
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


def classifier(key):
    return mk.maml.MAML(mk.nn.MLP(2, 3, 8, 1, jnp.tanh, key=key), inner=mk.inner.SGD(0.1), num_steps=1)


@pytest.mark.parametrize("order", ["an ensemble of tempered learners", "a tempered ensemble"])
def test_combinators_compose_with_each_other_and_with_training_and_devices(order):
    """Catches a combinator that only takes learners of the library."""
    if order == "a tempered ensemble":
        algorithm, learner = mk.tempered(mk.ensemble(mk.maml)), mk.Tempered(mk.Ensemble(members(classifier)))
    else:
        algorithm = mk.ensemble(mk.tempered(mk.maml))
        learner = mk.Ensemble([mk.Tempered(one) for one in members(classifier)])
    assert isinstance(algorithm, mk.Algorithm)
    score = lambda learner: mk.evaluate.scores(
        algorithm,
        learner,
        clusters,
        jax.random.key(1),
        num_tasks=100,
        metrics={"s": mk.metrics.negative_log_likelihood},
    )["s"]
    before = score(learner)
    optimiser = optax.adam(1e-2)
    state = mk.train.init(learner, optimiser, key=jax.random.key(0))
    state, _ = mk.train.run_steps(
        algorithm, optimiser, state, clusters, num_steps=60, meta_batch=4, mesh=mk.sharding.task_mesh(2)
    )
    assert mk.evaluate.paired_difference(score(state.learner), before).high < 0


def test_stacked_members_are_those_that_were_made():
    """Catches `stacked`, `[]` and `len` that count another axis."""
    keys = jax.random.split(jax.random.key(0), 3)
    one_by_one, at_once = mk.Ensemble(members(regressor)), mk.Ensemble.stacked(eqx.filter_vmap(regressor)(keys))
    assert len(one_by_one) == len(at_once) == 3
    assert eqx.tree_equal(one_by_one, at_once, rtol=1e-12)
    assert eqx.tree_equal(one_by_one[-1], regressor(keys[2]))
    with pytest.raises(IndexError, match="there are 3"):
        one_by_one[3]


def other_network(key):
    return mk.prototypical.Prototypical(mk.nn.MLP(2, 4, 16, 1, jnp.tanh, key=key))


KEY = jax.random.key(0)
WRONG = {
    "no member": (lambda: mk.Ensemble([]), ValueError, "holds no learner"),
    "one learner": (lambda: mk.Ensemble(prototypical(KEY)), TypeError, r"One learner is \[learner\]"),
    "another network": (lambda: mk.Ensemble([prototypical(KEY), other_network(KEY)]), ValueError, r"members\[1\]"),
    "other steps": (
        lambda: mk.Ensemble([regressor(KEY), mk.maml.with_num_steps(regressor(KEY), 3)]), ValueError, r"members\[1\]",
    ),
    "no array": (lambda: mk.Ensemble([None, None]), ValueError, "hold no array"),
    "not stacked": (lambda: mk.Ensemble.stacked(prototypical(KEY)), ValueError, "leading axis of members"),
    "a learner for an algorithm": (lambda: mk.ensemble(prototypical(KEY)), TypeError, "algorithm must hold"),
    "the member's learner": (
        lambda: mk.ensemble(mk.prototypical).adapt(prototypical(KEY), clusters(KEY).support), TypeError, "Ensemble",
    ),
    "trajectories": (
        lambda: mk.ensemble(mk.rl_maml).adapt(mk.Ensemble([jnp.ones(())]), jnp.ones(3)), TypeError, "of an episode",
    ),
    "outputs of another kind": (
        lambda: predictions(
            mk.ensemble(mk.MetaLearner(lambda l, s, key=None: l, lambda a, x, key=None: (a, a), None)),
            mk.Ensemble([jnp.ones(())]), clusters(KEY),
        ), TypeError, "combines logits",
    ),
    "under MetaGAN": (
        lambda: mk.metagan.MetaGAN(
            mk.ensemble(mk.prototypical), mk.Ensemble([prototypical(KEY)]), generator=jnp.sin, encoder=jnp.sin,
            noise_size=1, adapt_to_fakes=False,
        ), ValueError, "log-probabilities",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_arguments_are_named(fault):
    """Catches an error from JAX's insides, and members that stack although they are not alike."""
    call, kind, words = WRONG[fault]
    with pytest.raises(kind, match=words):
        call()
