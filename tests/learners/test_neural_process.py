"""Neural processes: identities, masks, bounds, and the oracle that none of them beats."""

import functools
import importlib
import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from _metric import assert_gradient_is_central_difference

import metakit as mk
from metakit.learners import neural_process
from metakit.learners.neural_process import Attention, LatentPath, NeuralProcess, adapt, diagnostics, meta_loss, predict

KINDS = ("uniform", "laplace", "dot", "multihead")


def only(*default):
    """All kinds, those that are not named in the slow run: each costs seconds of compilation."""
    marks = {kind: [] if kind in default else [pytest.mark.slow] for kind in KINDS}
    return pytest.mark.parametrize("attention", [pytest.param(kind, marks=marks[kind]) for kind in KINDS])


CURVES = mk.tasks.GaussianProcessCurves(shot=(2, 5), queries=4)


def make(key, **options):
    sizes = {"width": 8, "latent_size": 3, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2}
    return NeuralProcess(1, 1, **(sizes | options), key=key)


def plain(n, key):
    return mk.Examples(jax.random.normal(key, (n, 1)), jax.random.normal(jax.random.fold_in(key, 1), (n, 1)))


# Compiled, since op-by-op dispatch is most of the time of tests this small.
outputs = eqx.filter_jit(lambda learner, support, x, key: predict(adapt(learner, support), x, key))
adapt_to, predict_by = eqx.filter_jit(adapt), eqx.filter_jit(predict)
terms_of, loss_of = eqx.filter_jit(diagnostics), eqx.filter_jit(meta_loss)
sample = eqx.filter_jit(CURVES)


def assert_same(a, b, atol=1e-12):
    np.testing.assert_allclose(a.mean, b.mean, atol=atol)
    np.testing.assert_allclose(a.scale, b.scale, atol=atol)


@pytest.mark.parametrize("latent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_networks_read_features_of_inputs_wherever_they_read_inputs(latent, key):
    """Features in the encoder that the decoder does not see, or of the targets: with a map that forgets the sign of x,
    no output may know it, and with x^2 given in place of x all outputs must be the same."""
    square = lambda x: x**2
    learner, support = make(key, latent=latent, features=square), plain(5, jax.random.fold_in(key, 2))
    x = jnp.linspace(-2, 2, 4)[:, None]
    expected = outputs(learner, support, x, key)
    assert_same(outputs(learner, mk.Examples(-support.x, support.y), -x, key), expected)
    raw = eqx.tree_at(lambda l: l.features, learner, None, is_leaf=lambda leaf: leaf is None)
    assert_same(outputs(raw, mk.Examples(support.x**2, support.y), x**2, key), expected)
    task = mk.Episode(support, plain(3, key))
    squared = mk.Episode(*(mk.Examples(part.x**2, part.y) for part in (task.support, task.query)))
    np.testing.assert_allclose(loss_of(learner, task, key), loss_of(raw, squared, key), rtol=1e-12)


def test_attention_reads_the_inputs_themselves(key):
    """Features in the attention: with some that forget x, only the attention's weights can tell one x from another."""
    blind = lambda x: jnp.zeros((len(x), 3), x.dtype)
    support, x = plain(5, key), jnp.linspace(-2, 2, 4)[:, None]
    by_attention = outputs(make(key, attention="multihead", features=blind), support, x, key).mean
    by_nothing = outputs(make(key, features=blind), support, x, key).mean
    assert np.ptp(by_nothing) < 1e-12
    assert np.ptp(by_attention) > 1e-6


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (3, TypeError, r"features must map real inputs \[n, 1\] to real numbers \[n, f\].*got int"),
        (lambda x: (x, x), TypeError, "they returned tuple"),
        (lambda x: x[:1], ValueError, r"made float64\[1, 1\]"),
        (lambda x: x[:, 0], ValueError, r"made float64\[3\]"),
        (lambda x: x[:, :0], ValueError, r"made float64\[3, 0\]"),
        (lambda x: x > 0, ValueError, r"made bool\[3, 1\]"),
    ],
)
def test_features_that_are_none_are_refused(features, error, message, key):
    """A map that mixes up or drops points, which would show as an error in the middle of a network."""
    with pytest.raises(error, match=message):
        make(key, features=features)


@only("uniform", "multihead")
def test_neither_order_nor_copies_nor_padding_of_the_context_matter(attention, key):
    """T21. Catches a sum for a mean, a softmax over the queries, and padding that is attended to."""
    learner, support = make(key, attention=attention, latent=True), plain(5, jax.random.fold_in(key, 2))
    x = jnp.linspace(-2, 2, 3)[:, None]
    expected = outputs(learner, support, x, key)
    order = jnp.array([3, 0, 4, 1, 2])
    assert_same(outputs(learner, mk.Examples(support.x[order], support.y[order]), x, key), expected)
    twice = mk.Examples(jnp.tile(support.x, (2, 1)), jnp.tile(support.y, (2, 1)))
    assert_same(outputs(learner, twice, x, key), expected)
    junk = jnp.full((3, 1), jnp.nan)
    padded = mk.MaskedExamples(
        jnp.concatenate([support.x, junk]), jnp.concatenate([support.y, junk]), jnp.arange(8) < 5
    )
    assert_same(outputs(learner, padded, x, key), expected)
    # And the context does matter.
    assert np.abs(outputs(learner, mk.Examples(support.x, -support.y), x, key).mean - expected.mean).max() > 1e-6


def test_uniform_attention_is_the_mean_and_flat_weights_are_uniform(key):
    """T21: attentive with uniform attention is the plain neural process. Catches attention that scales its values."""
    x, context, values = jnp.zeros((2, 1)), jax.random.normal(key, (4, 1)), jax.random.normal(key, (4, 6))
    mask = jnp.array([True, True, False, True])

    def attend(kind, **options):
        return Attention(kind, in_size=1, value_size=6, width=5, key=key, **options)

    mean = jnp.broadcast_to(values[mask].mean(0)[None], (2, 6))
    np.testing.assert_allclose(attend("uniform")(x, context, values, mask), mean, atol=1e-14)
    flat = attend("laplace", length_scale=1e12)(x, context, values, mask)
    np.testing.assert_allclose(flat, mean, atol=1e-9)
    dot = attend("dot")
    silent = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if eqx.is_array(leaf) else leaf, dot.embed)
    dot = eqx.tree_at(lambda a: a.embed, dot, silent)
    np.testing.assert_allclose(dot(x, context, values, mask), mean, atol=1e-14)


def test_laplace_and_dot_weights_by_hand(key):
    """Catches an L2 distance, a missing length scale, and dot products not divided by the root of their size."""
    x, context, values = jnp.array([[0.5]]), jnp.array([[0.0], [2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    mask = jnp.ones(2, bool)
    embed = lambda x: jnp.concatenate([x, 2 * x, x, x], axis=1)
    for kind, options, scores in (
        ("laplace", {"length_scale": 0.5}, [-5 * 0.5 / 0.5, -5 * 1.5 / 0.5]),
        ("dot", {}, [0.0, 7 * 0.5 * 2.0 / 2.0]),
    ):
        attention = Attention(kind, in_size=1, value_size=2, width=4, key=key, **options)
        attention = eqx.tree_at(lambda a: a.embed, attention, embed)
        np.testing.assert_allclose(
            attention(x, context, values, mask)[0], jax.nn.softmax(jnp.array(scores)), rtol=1e-12
        )


def test_heads_equal_a_loop(key):
    """Catches heads that are mixed up, or concatenated where they should be added through their own projections."""
    attention = Attention("multihead", in_size=1, value_size=4, width=6, num_heads=2, key=key)
    x, context, values = (jax.random.normal(jax.random.fold_in(key, i), (3, n)) for i, n in enumerate((1, 1, 4)))
    both = eqx.filter_jit(lambda a: (a.embed(x), a.embed(context), a(x, context, values, jnp.ones(3, bool))))
    q, k, given = map(np.asarray, both(attention))
    h, expected = jax.tree.map(np.asarray, attention.heads), 0
    for i in range(2):
        scores = (q @ h.query[i]) @ (k @ h.key[i]).T / np.sqrt(2)
        expected = expected + scipy.special.softmax(scores, axis=1) @ (np.asarray(values) @ h.value[i]) @ h.output[i]
    np.testing.assert_allclose(given, expected, rtol=1e-10)


@only("multihead")
def test_an_empty_context_is_a_prediction_without_nan(attention, key):
    """Catches 0/0 in a mean or a softmax over nothing, in the value or in the gradient."""
    learner = make(key, attention=attention, latent=True)
    episode = sample(key)
    empty = mk.Episode(mk.MaskedExamples(episode.support.x, episode.support.y, jnp.zeros(5, bool)), episode.query)
    loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(learner, empty, key)
    assert jnp.isfinite(loss)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert jnp.isfinite(outputs(learner, empty.support, episode.query.x, key).mean).all()
    assert terms_of(learner, empty, key).context_log_density == 0


def test_padding_that_is_not_finite_reaches_no_gradient(key):
    """Catches NaN times zero in the backward pass."""
    learner, episode = make(key, attention="multihead", latent=True), sample(key)
    support = episode.support
    junk = jnp.where(support.mask[:, None], support.x, jnp.nan)
    task = mk.Episode(mk.MaskedExamples(junk, junk, support.mask), episode.query)
    gradient = eqx.filter_jit(eqx.filter_grad(meta_loss))(learner, task, key)
    assert not support.mask.all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_scales_stay_in_their_bounds(key):
    """T25. Catches a decoder without its floor, and a latent scale that reaches 0 or passes 1."""
    learner = make(key, latent=True)
    wild = jax.tree.map(
        lambda leaf: 30 * leaf if eqx.is_inexact_array(leaf) else leaf, (learner.decoder, learner.latent)
    )
    learner = eqx.tree_at(lambda l: (l.decoder, l.latent), learner, wild)
    support = plain(20, key)
    latent = adapt_to(learner, support).latent
    assert (latent.scale >= 0.1).all()
    assert (latent.scale <= 1.0).all()
    assert latent.scale.min() < 0.2
    scale = outputs(learner, support, 5 * support.x, key).scale
    assert (scale >= 0.1).all()
    assert scale.min() < 0.11
    np.testing.assert_array_less(0.25, outputs(make(key, min_scale=0.3), support, support.x, key).scale)


def test_the_scale_is_the_published_function(key):
    """Catches softplus without its factor: 0.1 + 0.9 softplus(s), and for the latent 0.1 + 0.9 sigmoid(w)."""
    learner = eqx.tree_at(lambda l: l.decoder, make(key), lambda h: jnp.tile(jnp.array([[0.3, -0.7]]), (len(h), 1)))
    prediction = outputs(learner, plain(3, key), jnp.zeros((2, 1)), key)
    np.testing.assert_allclose(prediction.mean, 0.3, rtol=1e-12)
    np.testing.assert_allclose(prediction.scale, 0.1 + 0.9 * np.log1p(np.exp(-0.7)), rtol=1e-12)
    path = LatentPath(2, 1, width=4, key=key)
    path = eqx.tree_at(lambda p: (p.scale.weight, p.scale.bias), path, (jnp.zeros((2, 1)), jnp.array([-0.7])))
    np.testing.assert_allclose(
        path(jnp.ones((3, 2)), jnp.ones(3, bool)).scale, 0.1 + 0.9 / (1 + np.exp(0.7)), rtol=1e-12
    )


@pytest.mark.parametrize("options", [{}, {"latent": True, "attention": "multihead"}], ids=["cnp", "anp"])
def test_the_loss_is_minus_the_bound_per_target(options, key):
    """Catches targets that leave the context out, a mean over the padding, a KL in the other direction, per point, or
    from the wrong set."""
    learner, episode = make(key, **options), sample(jax.random.key(1))
    n = int(episode.support.mask.sum())
    assert n < 5
    support = mk.Examples(episode.support.x[:n], episode.support.y[:n])
    targets = mk.Examples(*(jnp.concatenate(part) for part in zip(leaves(support), leaves(episode.query), strict=True)))
    adapted, kl = adapt_to(learner, support), 0.0
    if options:
        posterior = adapt_to(learner, targets).latent
        kl = posterior.kl(adapted.latent).sum()
        adapted = eqx.tree_at(lambda a: a.latent, adapted, posterior)
    # The same key draws the same z.
    nats = predict_by(adapted, targets.x, key).log_density(targets.y)
    expected = -(nats.sum() - kl) / (n + 4)
    np.testing.assert_allclose(loss_of(learner, episode, key), expected, rtol=1e-10)
    terms = terms_of(learner, episode, key)
    np.testing.assert_allclose(terms.context_log_density, nats[:n].mean(), rtol=1e-10)
    np.testing.assert_allclose(terms.target_log_density, nats[n:].mean(), rtol=1e-10)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-10)


def leaves(examples):
    return examples.x, examples.y


def test_targets_equal_to_the_context_have_no_kl(key):
    """T21. Catches a posterior that differs from the prior on the same set: a copy of the context is nothing new."""
    learner, support = make(key, latent=True), plain(4, key)
    terms = terms_of(learner, mk.Episode(support, support), key)
    np.testing.assert_allclose(terms.kl, 0.0, atol=1e-14)
    np.testing.assert_allclose(
        loss_of(learner, mk.Episode(support, support), key), -terms.target_log_density, rtol=1e-12
    )


def test_one_key_is_one_function(key):
    """Catches a z for every point: two calls with one key belong to one curve, another key to another."""
    adapted = adapt_to(make(key, latent=True), plain(4, key))
    x = jnp.linspace(-1, 1, 6)[:, None]
    together = predict_by(adapted, x, key)
    np.testing.assert_allclose(predict_by(adapted, x[4:], key).mean, together.mean[4:], rtol=1e-12)
    assert np.abs(predict_by(adapted, x, jax.random.key(1)).mean - together.mean).min() > 0


def test_several_targets_add_their_densities(key):
    """Catches a mean over the features of a target, which is no density."""
    learner = NeuralProcess(2, 3, width=8, encoder_depth=1, decoder_depth=1, key=key)
    x, y = jax.random.normal(key, (4, 2)), jax.random.normal(key, (4, 3))
    examples = mk.Examples(x, y)
    prediction = predict_by(adapt_to(learner, examples), x)
    expected = -prediction.log_density(y).sum(1).mean()
    np.testing.assert_allclose(loss_of(learner, mk.Episode(examples, examples)), expected, rtol=1e-12)
    np.testing.assert_allclose(mk.metrics.log_density(prediction, y), -expected, rtol=1e-12)


@only()
def test_gradient_equals_central_differences(attention, key):
    """Catches a gradient cut by a mask, by the length scale, or missing for the floor."""
    learner = make(key, attention=attention, latent=True, min_scale=mk.learned(0.1))
    episode = sample(jax.random.key(1))
    assert_gradient_is_central_difference(lambda m: loss_of(m, episode, key), learner, step=1e-6, rtol=1e-6)


def test_paths_can_be_left_out(key):
    """Catches a decoder of the wrong size, and a deterministic path that sneaks back in."""
    support, x = plain(4, key), jnp.zeros((2, 1))
    alone = make(key, latent=True, deterministic=False)
    adapted = adapt_to(alone, support)
    assert adapted.values is None
    assert predict_by(adapted, x, key).shape == (2, 1)
    assert adapt_to(make(key), support).latent is None


def test_float32_under_64_bits(key):
    """Catches a constant of another dtype, which strict promotion refuses."""
    small = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, make(key, latent=True))
    episode = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, sample(key))
    assert eqx.filter_eval_shape(meta_loss, small, episode, key).dtype == jnp.float32
    assert eqx.filter_eval_shape(outputs, small, episode.support, episode.query.x, key).dtype == jnp.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda k: make(k, attention="mutlihead"), "attention='mutlihead' is not known. Did you mean 'multihead'"),
        (lambda k: make(k, latent=True, latent_size=0), "latent_size must be at least 1, got 0"),
        (lambda k: make(k, deterministic=False), "latent and deterministic are both False"),
        (lambda k: make(k, attention="multihead", num_heads=3), "num_heads must divide the 8 features .* got 3"),
        (lambda k: NeuralProcess(0, 1, key=k), "in_size must be at least 1, got 0"),
        (lambda k: make(k, min_scale=jnp.ones(2)), "min_scale must be one number"),
        (lambda k: adapt(make(k), mk.Examples(jnp.ones((3, 2)), jnp.ones((3, 1)))), r"support.x must be \[n, 1\]"),
        (lambda k: adapt(make(k), mk.Examples(jnp.ones((3, 1)), jnp.ones(3))), r"support.y must be \[n, 1\].*\[3\]"),
        (
            lambda k: adapt(make(k), mk.Examples(jnp.ones((3, 1)), jnp.ones((3, 1), int))),
            "support.y must be .* real numbers of one dtype .* int",
        ),
        (lambda k: predict(adapt(make(k), plain(3, k)), jnp.ones((3, 2))), r"x must be \[n, 1\].*\[3, 2\]"),
        (lambda k: predict(adapt(make(k), plain(3, k)), jnp.ones(1)), r"x must be \[n, 1\].*\[1\]"),
        (lambda k: predict(adapt(make(k, latent=True), plain(3, k)), jnp.ones((3, 1))), "predict draws .* needs a key"),
        (lambda k: meta_loss(make(k, latent=True), CURVES(k)), "meta_loss draws random numbers and needs a key"),
    ],
)
def test_wrong_options_and_data_are_refused(build, message, key):
    """Catches an option that falls back in silence, and data that broadcasts to a plausible number."""
    with pytest.raises(ValueError, match=message):
        eqx.filter_eval_shape(build, key)


def trained(learner, tasks, num_steps, rate=2e-3):
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    state = mk.train.init(learner, optimiser, key=jax.random.key(5))
    return mk.train.run_steps(neural_process, optimiser, state, tasks, num_steps=num_steps, meta_batch=16)[0].learner


def density(algorithm, learner, tasks, num_tasks=1000):
    metrics = {"log_density": mk.metrics.log_density, "error": mk.metrics.mean_squared_error}
    return mk.evaluate.scores(algorithm, learner, tasks, jax.random.key(6), num_tasks=num_tasks, metrics=metrics)


def oracle(tasks):
    """The posterior as an algorithm, so that it is scored on the same tasks."""
    process = mk.tasks.gp_kernel(tasks, jax.random.key(0))
    predict = functools.partial(mk.tasks.gp_posterior, process, min_scale=0.1)
    return mk.MetaLearner(
        adapt=lambda learner, support, key=None: support,
        predict=lambda support, x, key=None: predict(support, x),
        meta_loss=lambda learner, task, key=None: jnp.zeros(()),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"attention": "uniform"},
        {"attention": "multihead"},
        {"attention": "uniform", "latent": True},
        {"attention": "laplace", "latent": True},
    ],
    ids=["cnp", "acnp", "np", "anp"],
)
def test_a_trained_learner_beats_its_untrained_self_but_not_the_oracle(options):
    """T24. Catches a loss that does not train, and a leak: targets in the context, or a density that is none, would
    take the held-out score above the exact posterior's."""
    with jax.enable_x64(False):
        tasks = mk.tasks.GaussianProcessCurves()
        learner = NeuralProcess(1, 1, width=32, latent_size=16, key=jax.random.key(0), **options)
        scores = density(neural_process, trained(learner, tasks, 600), tasks)
        untrained, best = density(neural_process, learner, tasks), density(oracle(tasks), None, tasks)
        for name, better in (("log_density", 1), ("error", -1)):
            gain = mk.evaluate.paired_difference(better * scores[name], better * untrained[name])
            gap = mk.evaluate.paired_difference(better * best[name], better * scores[name])
            assert gain.low > 0, (name, gain)
            assert gap.high > 0, (name, gap)
        reached = mk.evaluate.student_t(scores["log_density"])
        assert reached.low > mk.evaluate.student_t(untrained["log_density"]).high
        # Standard normal predictions, the best that ignore the support set, reach -0.5 log(2 pi) - 0.5.
        assert reached.low > -1.419
        assert reached.low < -0.2


@pytest.mark.slow
def test_the_example_trains_and_draws(tmp_path):
    """Catches an example that no longer runs."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
    try:
        example = importlib.import_module("neural_process")
    finally:
        sys.path.pop(0)
    with jax.enable_x64(False):
        figures = example.main(tmp_path / "curves.png", steps=20, features=4, num_tasks=50)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert figures["learner"].mean < figures["oracle"].mean
