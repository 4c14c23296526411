"""The Neural Statistician: the evidence of a linear-Gaussian model, set identities, KL classification, and errors."""

import functools
import importlib
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from _metric import assert_gradient_is_central_difference, random_episode, random_examples

import metakit as mk
from metakit.learners import statistician
from metakit.learners.statistician import (
    Statistician,
    adapt,
    anneal_emphasis,
    diagnostics,
    freeze_statistics,
    meta_loss,
    of_images,
    of_vectors,
    predict,
)
from metakit.learners.statistician._functions import _log_likelihood, _Noise, bound
from metakit.learners.statistician._images import pixel_shuffle


def make(key, in_size=4, **options):
    return of_vectors(in_size, **({"context_size": 2, "latent_size": 2, "width": 8, "depth": 1} | options), key=key)


# Compiled, since op-by-op dispatch is most of the time of tests this small.
outputs = eqx.filter_jit(lambda learner, support, x: predict(adapt(learner, support), x))
contexts_of = eqx.filter_jit(lambda learner, support: adapt(learner, support).contexts)
terms_of, loss_of, bound_of = eqx.filter_jit(diagnostics), eqx.filter_jit(meta_loss), eqx.filter_jit(bound)
frozen = eqx.filter_jit(freeze_statistics)


def linear_gaussian(n, variance, factor=1.0, shift=0.0):
    """x ~ N(c, variance), c ~ N(0, 1), and for sets of n the exact posterior of c, its mean and variance disturbed by
    `shift` and `factor`. Latents are there but say nothing."""
    learner = make(jax.random.key(0), 1, context_size=1, latent_size=1)
    silent = lambda hidden: jnp.zeros((len(hidden), 2))
    log_variance = np.log(factor * variance / (n + variance))
    return eqx.tree_at(
        lambda l: (l.before_pooling, l.after_pooling, l.inference, l.prior, l.decode),
        learner,
        (
            lambda x: x,
            lambda mean: jnp.concatenate(
                [n * mean / (n + variance) + shift, jnp.full_like(mean, log_variance)], axis=1
            ),
            (silent,),
            (silent,),
            lambda h: jnp.stack([h[:, 1:], jnp.full((len(h), 1), 0.5 * np.log(variance))], axis=-1),
        ),
    )


def exact_bound(learner, x):
    """The bound of one set: all of its expectations are quadratic in the noise, so two points give them exactly."""
    members = jnp.ones((len(x), 1), bool)
    zeros = jnp.zeros((1, len(x), 1))
    terms = [bound_of(learner, x, members, members, _Noise(jnp.full((1, 1), e), zeros)) for e in (-1.0, 1.0)]
    return len(x) * np.mean([t.reconstruction - t.context_kl - t.latent_kl for t in terms])


def test_the_bound_at_the_exact_posterior_is_the_evidence(key):
    """T22. Catches a KL in the wrong direction or per example, a reconstruction without its constant, and a mean for a
    sum over the set."""
    variance, x = 0.7, jax.random.normal(key, (5, 1))
    evidence = scipy.stats.multivariate_normal.logpdf(x[:, 0], np.zeros(5), np.ones((5, 5)) + variance * np.eye(5))
    np.testing.assert_allclose(exact_bound(linear_gaussian(5, variance), x), evidence, rtol=1e-12)
    for other in ({"factor": 1.5}, {"factor": 0.6}, {"shift": 0.3}, {"shift": -0.3}):
        assert exact_bound(linear_gaussian(5, variance, **other), x) < evidence - 1e-3, other


def test_the_drawn_bound_is_the_evidence_on_average(key):
    """T22 through the public function, with several sets in one task. Catches noise that is shared, or scaled by the
    variance; the average over 4,000 keys within five standard errors."""
    variance = 0.7
    task = random_episode(key, way=3, shot=2, queries=3, d=1)
    learner = linear_gaussian(5, variance)
    losses = jax.jit(jax.vmap(lambda k: loss_of(learner, task, k)))(jax.random.split(key, 4000))
    evidence = 0.0
    for label in range(3):
        x = np.concatenate([part.x[part.y == label, 0] for part in (task.support, task.query)])
        covariance = np.ones((5, 5)) + variance * np.eye(5)
        evidence += scipy.stats.multivariate_normal.logpdf(x, np.zeros(5), covariance)
    error = float(losses.std()) / np.sqrt(4000)
    assert error > 0
    assert abs(float(losses.mean()) + evidence / 15) < 5 * error


def test_neither_order_nor_copies_of_a_set_matter(key):
    """T21. Catches a sum over the set, or a division by the number of all examples."""
    learner, support = make(key), random_examples(key, [0, 1, 2, 0, 1, 0], way=3)
    contexts = contexts_of(learner, support)
    order = jnp.array([4, 2, 0, 5, 3, 1])
    for other in (
        mk.Examples(support.x[order], support.y[order], way=3),
        mk.Examples(jnp.tile(support.x, (2, 1)), jnp.tile(support.y, 2), way=3),
    ):
        again = contexts_of(learner, other)
        np.testing.assert_allclose(again.mean, contexts.mean, atol=1e-13)
        np.testing.assert_allclose(again.scale, contexts.scale, atol=1e-13)


def test_a_class_is_summarised_by_its_own_examples(key):
    """Catches contexts that leak between classes."""
    learner, support = make(key), random_examples(key, [0, 1, 1, 2], way=3)
    contexts = contexts_of(learner, support)
    alone = contexts_of(learner, mk.Examples(support.x[1:3], jnp.zeros(2, int), way=1))
    np.testing.assert_allclose(contexts.mean[1], alone.mean[0], atol=1e-13)


def test_logits_are_minus_the_divergence_from_the_class_to_the_query(key):
    """Catches the other direction, a missing sum over the context, and a table that is transposed."""
    learner, task = make(key, context_size=3), random_episode(key, way=3, shot=2, queries=1)
    logits = outputs(learner, task.support, task.query.x)
    classes = contexts_of(learner, task.support)
    for i, x in enumerate(task.query.x):
        query = contexts_of(learner, mk.Examples(x[None], jnp.zeros(1, int), way=1))
        for n in range(3):
            p, q = ((d.mean[j], d.scale[j]) for d, j in ((classes, n), (query, 0)))
            kl = jnp.log(q[1] / p[1]) + (p[1] ** 2 + (p[0] - q[0]) ** 2) / (2 * q[1] ** 2) - 0.5
            np.testing.assert_allclose(logits[i, n], -kl.sum(), rtol=1e-9)
    one_shot = outputs(learner, mk.Examples(task.support.x[:3], task.support.y[:3], way=3), task.support.x[:3])
    np.testing.assert_allclose(jnp.diagonal(one_shot), 0.0, atol=1e-12)
    assert (one_shot <= 1e-12).all()


def test_a_class_without_support_has_probability_zero_and_no_divergence(key):
    """Catches an empty set that competes by the summary of nothing, or that is charged for it."""
    # At the start all biases are 0, and the summary of nothing is the prior.
    learner = jax.tree.map(lambda leaf: leaf + 0.1 if eqx.is_inexact_array(leaf) else leaf, make(key))
    support, query = random_examples(key, [0, 0, 2], way=3), random_examples(key, [0, 2], way=3)
    assert jnp.isneginf(outputs(learner, support, query.x)[:, 1]).all()
    packed = [mk.Examples(part.x, part.y // 2, way=2) for part in (support, query)]
    full = terms_of(learner, mk.Episode(support, query), key).context_kl
    np.testing.assert_allclose(full, terms_of(learner, mk.Episode(*packed), key).context_kl, rtol=1e-12)


@pytest.mark.parametrize("part", ["support", "query"])
def test_a_label_outside_the_range_shows(part, key):
    """Catches an example of no class that joins the first one."""
    learner, task = make(key), random_episode(key)
    bad = eqx.tree_at(lambda t: getattr(t, part).y, task, replace_fn=lambda y: y.at[0].set(3))
    assert jnp.isnan(loss_of(learner, bad, key))
    if part == "support":
        assert jnp.isnan(outputs(learner, bad.support, task.query.x)).all()


def test_emphasis_weighs_the_terms(key):
    """Catches weights that are swapped: (1 + a) times the reconstruction, the divergences over (1 + a)."""
    task, terms = random_episode(key), terms_of(make(key), random_episode(key), key)
    divergences = terms.context_kl + terms.latent_kl
    plain, halved = loss_of(make(key), task, key), loss_of(make(key, emphasis=1.0), task, key)
    np.testing.assert_allclose(plain, divergences - terms.reconstruction, rtol=1e-12)
    np.testing.assert_allclose(halved, divergences / 2 - 2 * terms.reconstruction, rtol=1e-12)


def test_the_emphasis_halves(key):
    """Catches a schedule that rises, falls along a line, or changes the dtype, which the training step refuses."""
    learner = make(key, emphasis=0.5)
    anneal = functools.partial(anneal_emphasis, halve_every=10)
    found = [anneal(learner, jnp.asarray(step, jnp.int32)).emphasis.value for step in (0, 5, 10, 30)]
    np.testing.assert_allclose(found, [1.0, 0.5**0.5, 0.5, 0.125], rtol=1e-12)
    small = eqx.tree_at(lambda l: l.emphasis.value, learner, jnp.zeros((), jnp.float32))
    assert anneal(small, jnp.asarray(3, jnp.int32)).emphasis.value.dtype == jnp.float32


def test_sample_dropout_hides_examples_from_the_summary_alone(key):
    """Catches dropout of a whole set (0/0), of the loss's examples, or none at all."""
    task = random_episode(key, way=3, shot=2, queries=2)
    terms = [terms_of(make(key, sample_dropout=p), task, key) for p in (0.0, 0.5, 0.999)]
    assert all(jnp.isfinite(jnp.stack(jax.tree.leaves(t))).all() for t in terms)
    assert terms[0].context_kl != terms[1].context_kl
    # All of every set would be left out, so none is.
    np.testing.assert_allclose(terms[2].context_kl, terms[0].context_kl, rtol=1e-12)
    silent = linear_gaussian(4, 0.5)
    silent = eqx.tree_at(lambda l: l.sample_dropout, silent, mk.fixed(0.5))
    set_of_one = random_episode(key, way=1, shot=2, queries=2, d=1)
    per_example = [terms_of(silent, set_of_one, k).reconstruction for k in jax.random.split(key, 3)]
    assert len({float(r) for r in per_example}) == 3


def test_latents_in_two_layers_depend_on_each_other(key):
    """Catches a second layer that does not see the first, in the posterior or in the prior."""
    learner, task = make(key, num_layers=2), random_episode(key)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda l: diagnostics(l, task, key).latent_kl))(learner)
    for networks in (gradient.inference, gradient.prior):
        assert networks[1].hidden[0].weight.shape[0] == networks[0].hidden[0].weight.shape[0] + 2
        assert (jnp.abs(networks[1].hidden[0].weight[-2:]).max(axis=1) > 0).all()


def test_log_variances_are_kept_in_range(key):
    """Catches a variance that collapses to 0 on a feature without noise, after which one step is infinite."""
    learner = make(key)
    wild = jax.tree.map(lambda leaf: 1e3 * leaf if eqx.is_inexact_array(leaf) else leaf, learner)
    contexts = contexts_of(wild, random_examples(key, [0, 1, 2] * 4, way=3))
    assert contexts.scale.min() >= np.exp(-2) - 1e-12
    assert contexts.scale.max() <= np.exp(1.5) + 1e-12
    assert jnp.isfinite(loss_of(wild, random_episode(key), key))


@pytest.mark.slow
def test_gradient_equals_central_differences(key):
    """Catches a draw without its gradient, and a gradient cut between the layers; the contract row has one layer."""
    learner, task = make(key, num_layers=2, emphasis=mk.learned(0.3)), random_episode(key)
    assert_gradient_is_central_difference(lambda m: loss_of(m, task, key), learner, step=1e-6, rtol=1e-6)


@pytest.mark.parametrize("network", ["after_pooling", "inference", "prior"])
def test_means_and_log_variances_are_normed_as_one_feature(network, key):
    """Catches a norm of each feature, by which an unused direction of the context would weigh as much as the others,
    and a network whose outputs are not normed."""
    learner = make(key, context_size=4, latent_size=4, norm=mk.nn.BatchStatNorm)
    head = getattr(learner, network)
    head = head if network == "after_pooling" else head[0]
    in_size = head.network.hidden[0].weight.shape[0]
    parameters = head(jax.random.normal(key, (50, in_size)))
    np.testing.assert_allclose([parameters.mean(), parameters.var()], [0.0, 1.0], atol=1e-4)
    assert parameters.mean(axis=0).std() > 0.05
    assert parameters.var(axis=0).std() > 0.05


@pytest.mark.parametrize("norm", ["every network's", "the encoder's"])
def test_fixed_statistics_are_those_of_training_and_of_every_set(norm, key):
    """Catches statistics of another batch than training's, a network that is left out, and a class or a query whose
    context depends on what it is tested beside."""
    if norm == "the encoder's":
        learner = eqx.tree_at(lambda l: l.encode, make(key), mk.nn.BatchStatNorm(4))
    else:
        learner = make(key, sample_dropout=0.5, norm=mk.nn.BatchStatNorm)
    sets, task = random_episode(key, shot=2, queries=3), random_episode(jax.random.key(7))
    fixed = frozen(learner, sets, key)
    np.testing.assert_allclose(loss_of(fixed, sets, key), loss_of(learner, sets, key), rtol=1e-9)
    assert abs(loss_of(fixed, task, key) - loss_of(learner, task, key)) > 1e-3
    together, alone = (outputs(fixed, task.support, x) for x in (task.query.x, task.query.x[:1]))
    np.testing.assert_allclose(alone, together[:1], rtol=1e-9)
    single = mk.Examples(task.query.x[:1], jnp.zeros(1, int), way=1)
    np.testing.assert_allclose(outputs(fixed, single, task.query.x[:1]), 0.0, atol=1e-12)


def images(key, side=8, way=2):
    x = (jax.random.uniform(key, (2 * way, 1, side, side)) > 0.5).astype(float)
    return mk.Examples(x, jnp.arange(2 * way) % way, way=way)


def tiny_images(key, side=8, **options):
    sizes = {"context_size": 3, "latent_size": 2, "filters": 2, "width": 8, "depth": 1}
    options = {"norm": functools.partial(mk.nn.GroupNorm, 1)} | options
    return of_images(1, side, **(sizes | options), key=key)


def test_images_have_a_bernoulli_likelihood(key):
    """Catches a likelihood of logits taken for probabilities, or a mean over pixels."""
    x, logits = images(key).x, np.linspace(-2, 2, 256).reshape(4, 1, 8, 8)
    nats = _log_likelihood(_general(key, likelihood="bernoulli"), jnp.asarray(logits), x)
    expected = scipy.stats.bernoulli.logpmf(np.asarray(x, int), 1 / (1 + np.exp(-logits))).sum((1, 2, 3))
    np.testing.assert_allclose(nats, expected, rtol=1e-10)


def test_a_pixel_shuffle_keeps_places():
    """Catches a reshape without its transpose: an image cut into stripes, which a decoder could only learn around."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8))
    shuffled = pixel_shuffle(jnp.asarray(x))
    assert shuffled.shape == (2, 2, 6, 8)
    for down in range(2):
        for right in range(2):
            expected = np.moveaxis(x[..., 2 * (2 * down + right) :][..., :2], -1, 1)
            np.testing.assert_array_equal(shuffled[:, :, down::2, right::2], expected)


@pytest.mark.parametrize("side", [pytest.param(8, marks=pytest.mark.slow), 11])
def test_images_of_any_side_are_decoded_to_their_side_and_see_no_other(side, key):
    """Catches doublings that miss an odd side, and a prediction that depends on the other queries."""
    learner, examples = tiny_images(key, side), images(key, side)
    logits = outputs(learner, examples, examples.x)
    assert logits.shape == (4, 2)
    np.testing.assert_allclose(outputs(learner, examples, examples.x[:1]), logits[:1], rtol=1e-9, atol=1e-12)
    assert eqx.filter_jit(learner.decode)(jnp.ones((2, 5))).shape == (2, 1, side, side)


def test_float32_under_64_bits(key):
    """Catches a constant of another dtype, which strict promotion refuses."""
    small = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree)
    task = small(random_episode(key))
    learner = small(make(key, emphasis=0.5, sample_dropout=0.1))
    assert eqx.filter_eval_shape(meta_loss, learner, task, key).dtype == jnp.float32
    assert eqx.filter_eval_shape(outputs, learner, task.support, task.query.x).dtype == jnp.float32


def pixels(key):
    return jax.tree.map(lambda a: a.astype("uint8") if a.dtype == jnp.float64 else a, random_episode(key))


def masked(key):
    task = random_episode(key)
    x, y = task.support.x, task.support.y
    return mk.Episode(mk.MaskedExamples(x, y, jnp.ones(len(x), bool), way=3), task.query)


def _general(key, **options):
    sizes = {"features": 4, "context_size": 2, "latent_size": 2, "likelihood": "gaussian"}
    return Statistician(lambda x: x, lambda h: h, **(sizes | options), key=key)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda k: make(k, latent_size=0), "latent_size must be at least 1, got 0"),
        (lambda k: make(k, context_size=0), "context_size must be at least 1, got 0"),
        (lambda k: make(k, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda k: of_vectors(0, key=k), "in_size must be at least 1, got 0"),
        (lambda k: tiny_images(k, filters=0), "width must be at least 1, got 0"),
        (lambda k: _general(k, latent_size=0), "latent_size must be at least 1, got 0"),
        (lambda k: _general(k, likelihood="normal"), "likelihood='normal' is not known"),
        (lambda k: make(k, emphasis=jnp.ones(2)), "emphasis must be one number"),
        (
            lambda k: meta_loss(make(k), random_episode(k)),
            "Statistician's meta_loss draws random numbers and needs a key",
        ),
        (lambda k: adapt(make(k), mk.Examples(jnp.ones((3, 4)), jnp.zeros(3, int))), "support.way is missing"),
        (lambda k: meta_loss(make(k), pixels(k), k), r"support.x must hold real numbers, got uint8\[6, 4\].*255"),
        (lambda k: meta_loss(make(k), masked(k), k), "support is a MaskedExamples, but Statistician knows no masks"),
        (lambda k: adapt(make(k), mk.Examples(jnp.ones((3, 4)), jnp.ones((3, 1)))), "integer class labels"),
        (
            lambda k: adapt(make(k), mk.Examples(jnp.ones((3, 2, 2)), jnp.zeros(3, int), way=1)),
            r"encode must map .*\[3, 2",
        ),
        (lambda k: predict(adapt(make(k), random_examples(k, [0, 1], 2)), jnp.ones(4)), r"x\[4\].*x\[None\]"),
        (lambda k: meta_loss(_general(k), random_episode(k), k), r"decode must return \[12, 4, 2\].*got \[12, 4\]"),
        (
            lambda k: adapt(make(k, norm=mk.nn.BatchStatNorm), random_examples(k, [0, 1], 2)),
            r"BatchStatNorm layers .* mk.statistician.freeze_statistics",
        ),
        (lambda k: freeze_statistics(make(k), random_episode(k), k), "no BatchStatNorm"),
        (lambda k: anneal_emphasis(make(k), jnp.asarray(0), halve_every=0), "halve_every must be at least 1, got 0"),
        (lambda k: adapt(tiny_images(k), images(k, 11)), r"takes images of \[1, 8, 8\] .* got \[1, 11, 11\]"),
    ],
)
def test_wrong_options_and_data_are_refused(build, message, key):
    """Catches an option that falls back in silence, and a decoder whose output broadcasts against the examples."""
    with pytest.raises(ValueError, match=message):
        eqx.filter_eval_shape(build, key)


def sets(key, way=3, shot=1, queries=5):
    """Classes that differ in their mean; noise of the same size in every direction."""
    mean_key, noise_key = jax.random.split(key)
    means, n = 2 * jax.random.normal(mean_key, (way, 1, 4)), shot + queries
    x = means + 0.7 * jax.random.normal(noise_key, (way, n, 4))
    y = jnp.broadcast_to(jnp.arange(way)[:, None], (way, n))
    part = lambda cut: mk.Examples(x[:, cut].reshape(-1, 4), y[:, cut].reshape(-1), way=way)
    return mk.Episode(part(slice(shot)), part(slice(shot, None)))


@pytest.mark.slow
def test_the_example_trains_resumes_and_tests(tmp_path, monkeypatch):
    """Catches an example that no longer runs, or that starts again instead of going on."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "examples")
    example = importlib.import_module("statistician")
    options = {"sets": 4, "filters": 2, "context_size": 4, "num_tasks": 20, "validate_every": 2}
    with jax.enable_x64(False):
        reached = example.main(tmp_path / "run", steps=4, **options)
        assert 0 <= reached.mean <= 1
        # The run is complete, so its best learner is tested again.
        assert example.main(tmp_path / "run", steps=4, **options).mean == reached.mean


@pytest.mark.slow
def test_a_trained_learner_beats_its_untrained_self():
    """Catches a loss that does not make the context say which set it is: neither labels of the query nor an accuracy
    enter the loss, only sets."""
    with jax.enable_x64(False):
        learner = of_vectors(4, context_size=4, latent_size=4, width=32, depth=1, key=jax.random.key(0))
        optimiser = optax.adam(3e-3)
        state = mk.train.init(learner, optimiser, key=jax.random.key(1))
        state, _ = mk.train.run_steps(statistician, optimiser, state, sets, num_steps=1000, meta_batch=8)

        def accuracy(learner):
            metrics = {"accuracy": mk.metrics.accuracy}
            scores = mk.evaluate.scores(statistician, learner, sets, jax.random.key(2), num_tasks=1000, metrics=metrics)
            return mk.evaluate.student_t(scores["accuracy"])

        trained, untrained = accuracy(state.learner), accuracy(learner)
        assert trained.low > untrained.high, (trained, untrained)
        assert trained.low > 0.8  # 0.905 when written; chance is a third
