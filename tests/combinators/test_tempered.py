"""Golden identities of temperatures, and what fitting one is for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

CURVES = mk.tasks.GaussianProcessCurves(shot=(2, 5), queries=5)
SINUSOID = mk.tasks.Sinusoid(shot=5, queries=5)
POOL = mk.tasks.ImagePool(np.random.default_rng(0).integers(0, 255, (6, 4, 1, 3, 3), "uint8"))


def episodes(key):
    task = mk.tasks.Episodes(POOL, way=3, shot=1, queries=2)(key)
    return eqx.tree_at(lambda t: (t.support.x, t.query.x), task, replace_fn=lambda x: x.astype("float64"))


class Flat(eqx.Module):
    network: mk.nn.MLP

    def __call__(self, x):
        return self.network(x.reshape(len(x), -1))


def classifier(key):
    return mk.prototypical.Prototypical(Flat(mk.nn.MLP(9, 4, 8, 1, key=key)))


def process(key):
    return mk.neural_process.NeuralProcess(1, 1, width=8, encoder_depth=1, decoder_depth=1, key=key)


KINDS = {
    "classes": (mk.prototypical, classifier, episodes),
    "densities": (mk.neural_process, process, CURVES),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def predictions(algorithm, learner, task):
    return algorithm.predict(algorithm.adapt(learner, task.support), task.query.x)


@each_kind
def test_temperature_one_is_the_base(kind):
    """Catches a temperature that is stored rounded, or applied twice: bit for bit the base's predictions."""
    algorithm, make, sampler = KINDS[kind]
    base, task = make(jax.random.key(0)), sampler(jax.random.key(1))
    assert eqx.tree_equal(
        predictions(mk.tempered(algorithm), mk.Tempered(base), task), predictions(algorithm, base, task)
    )


def test_logits_are_divided_and_their_order_stays():
    """Catches logits that are multiplied, and a temperature that moves the accuracy."""
    base = classifier(jax.random.key(0))
    for i in range(20):
        task = episodes(jax.random.key(i))
        cold = predictions(mk.prototypical, base, task)
        warm = predictions(mk.tempered(mk.prototypical), mk.Tempered(base, 2.5), task)
        np.testing.assert_allclose(warm, cold / 2.5, rtol=1e-12)
        np.testing.assert_array_equal(jnp.argmax(warm, axis=-1), jnp.argmax(cold, axis=-1))


def test_standard_deviations_are_multiplied():
    """Catches a variance that is multiplied, and a mean that moves."""
    base, task = process(jax.random.key(0)), CURVES(jax.random.key(1))
    plain = predictions(mk.neural_process, base, task)
    warm = predictions(mk.tempered(mk.neural_process), mk.Tempered(base, 2.5), task)
    np.testing.assert_array_equal(warm.mean, plain.mean)
    np.testing.assert_allclose(warm.scale, 2.5 * plain.scale, rtol=1e-12)


@each_kind
def test_the_loss_is_the_surprise_at_the_queries(kind):
    """Catches a meta-loss that the temperature does not reach, or of another sign than the metric."""
    algorithm, make, sampler = KINDS[kind]
    learner, task = mk.Tempered(make(jax.random.key(0)), 2.5), sampler(jax.random.key(1))
    outputs = predictions(mk.tempered(algorithm), learner, task)
    expected = (
        mk.metrics.negative_log_likelihood(outputs, task.query.y)
        if kind == "classes"
        else -mk.metrics.log_density(outputs, task.query.y)
    )
    np.testing.assert_allclose(mk.tempered(algorithm).meta_loss(learner, task), expected, rtol=1e-12)


def test_fixed_stays_and_learned_moves():
    """Catches a temperature that a user fixed and training moves."""
    algorithm, optimiser = mk.tempered(mk.prototypical), optax.adam(0.1)
    for given, moves in ((2.0, False), (mk.fixed(2.0), False), (mk.learned(2.0), True)):
        learner = mk.Tempered(classifier(jax.random.key(0)), given)
        state = mk.train.init(learner, optimiser, key=jax.random.key(1))
        state, _ = mk.train.run_steps(algorithm, optimiser, state, episodes, num_steps=2, meta_batch=2)
        assert (not np.isclose(state.learner.temperature, 2.0, rtol=1e-12)) == moves


WRONG = {
    "zero": (lambda: mk.Tempered(None, 0.0), ValueError, "above 0, got 0"),
    "negative": (lambda: mk.Tempered(None, mk.learned(-1.0)), ValueError, "above 0, got -1"),
    "NaN": (lambda: mk.Tempered(None, float("nan")), ValueError, "above 0, got nan"),
    "one a class": (lambda: mk.Tempered(None, jnp.ones(2)), ValueError, r"one number, got shape \[2\]"),
    "a learner for an algorithm": (lambda: mk.tempered(mk.Tempered(None)), TypeError, "algorithm must hold"),
    "real outputs": (
        lambda: mk.tempered(mk.ridge).meta_loss(
            mk.Tempered(mk.ridge.Ridge(jnp.sin, penalty=mk.learned(1.0))), SINUSOID(jax.random.key(0))
        ), ValueError, "how sure they are",
    ),
    "a query set with padding": (
        lambda: mk.tempered(mk.prototypical).meta_loss(mk.Tempered(classifier(jax.random.key(0))), padded()),
        TypeError, "query must be Examples, got a MaskedExamples",
    ),
}  # fmt: skip


def padded():
    task = episodes(jax.random.key(0))
    query = mk.MaskedExamples(task.query.x, task.query.y, jnp.ones(len(task.query.y), bool), way=3)
    return mk.Episode(task.support, query)


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_arguments_are_named(fault):
    """Catches a temperature that turns predictions round, and outputs that have none."""
    call, kind, words = WRONG[fault]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.slow
def test_fitting_the_temperature_calibrates():
    """Catches a temperature that is fitted to something else than calibration.

    MAML on Glyphs, 5-way 1-shot, is too little sure of itself after 300 steps. Its temperature is fitted on validation
    classes; the calibration error on test classes is measured on 20 times 100 tasks.
    """
    with jax.enable_x64(False):
        tasks = {
            part: mk.tasks.Episodes(mk.tasks.glyphs(part), way=5, shot=1, queries=queries)
            for part, queries in (("train", 5), ("val", 5), ("test", 15))
        }
        model = Flat(mk.nn.MLP(784, 5, 64, 1, key=jax.random.key(0)))
        base = mk.maml.MAML(model, inner=mk.inner.SGD(0.5), num_steps=3)
        state = mk.train.init(base, optax.adam(1e-3), key=jax.random.key(1))
        state, _ = mk.train.run_steps(mk.maml, optax.adam(1e-3), state, tasks["train"], num_steps=300, meta_batch=4)

        algorithm, only_the_temperature = mk.tempered(mk.maml), mk.inner.select.only(lambda t: t.log_temperature)
        before, optimiser = mk.Tempered(state.learner), optax.adam(0.05)
        fitting = mk.train.init(before, optimiser, key=jax.random.key(2), trainable=only_the_temperature)
        fitting, _ = mk.train.run_steps(algorithm, optimiser, fitting, tasks["val"], num_steps=100, meta_batch=8)
        after = fitting.learner
        assert eqx.tree_equal(after.base, before.base)

        def errors(learner):
            keys = jax.random.split(jax.random.key(3), 20)
            measure = lambda key: mk.evaluate.calibration(algorithm, learner, tasks["test"], key, num_tasks=100).error
            return np.array([measure(key) for key in keys])

        def accuracies(learner):
            metrics = {"accuracy": mk.metrics.accuracy}
            return mk.evaluate.scores(
                algorithm, learner, tasks["test"], jax.random.key(4), num_tasks=500, metrics=metrics
            )["accuracy"]

        difference = mk.evaluate.paired_difference(errors(after), errors(before))
        assert difference.high < -0.01, f"{difference} at temperature {after.temperature}"
        np.testing.assert_array_equal(accuracies(after), accuracies(before))
