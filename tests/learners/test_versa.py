"""VERSA: the distribution over classifiers, its samples and objective, keys, policies, edges and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import (
    Affine,
    assert_gradient_is_central_difference,
    assert_training_helps,
    flat,
    random_episode,
    random_examples,
)

import metakit as mk
from metakit.learners import prototypical, versa
from metakit.learners.versa import Amortiser, HeadPosterior, Versa, adapt, logit_moments, meta_loss, predict

POLICIES = ("joint", "transductive", "inductive")


@eqx.filter_jit
def outputs(learner, support, x, key):
    """Adapt and predict; compiled, since op-by-op dispatch is most of the time of tests this small."""
    return predict(adapt(learner, support), x, key)


def random_posterior(key, way, d):
    keys = jax.random.split(key, 4)
    shapes = [(way, d), (way, d), (way,), (way,)]
    return HeadPosterior(*[jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)])


def always(posterior):
    """An amortiser that ignores the support set."""
    return lambda means: posterior


def small(key, norm=True, **options):
    k1, k2 = jax.random.split(key)
    return Versa(Affine(4, 3, k1, norm=norm), Amortiser(3, width=5, key=k2), **({"num_samples": 4} | options))


def test_is_an_algorithm():
    """Catches a missing or renamed function."""
    assert isinstance(versa, mk.Algorithm)


def test_moments_of_the_logits_equal_those_of_sampled_weights(key):
    """T23. Catches a standard deviation for a variance, features that are not squared, and a bias without noise."""
    draws, way, d = 100_000, 3, 4
    posterior = random_posterior(key, way, d)
    h = jax.random.normal(jax.random.fold_in(key, 1), (2, d))
    mean, variance = logit_moments(posterior, h)
    w_key, b_key = jax.random.split(jax.random.fold_in(key, 2))
    sample = lambda key, mean, log_variance: (
        mean[None] + jnp.exp(0.5 * log_variance)[None] * jax.random.normal(key, (draws, *mean.shape))
    )
    w = sample(w_key, posterior.weight_mean, posterior.weight_log_variance)
    b = sample(b_key, posterior.bias_mean, posterior.bias_log_variance)
    logits = jnp.einsum("lnd,qd->lqn", w, h) + b[:, None]
    # Gaussian logits: a mean is known to σ/√L, a variance to σ²√(2/L); 12 numbers, 5 standard errors.
    assert (np.abs(logits.mean(0) - mean) < 5 * np.sqrt(variance / draws)).all()
    assert (np.abs(logits.var(0) - variance) < 5 * variance * np.sqrt(2 / draws)).all()


def test_predictions_are_the_mean_over_the_distribution(key):
    """T23. Catches one draw shared by all classes, a mean of logits or of logarithms: two classes, by quadrature."""
    posterior = random_posterior(key, 2, 3)
    support = random_examples(key, [0, 1], 2, d=3)
    x = jax.random.normal(jax.random.fold_in(key, 1), (4, 3))
    samples = 100_000
    learner = Versa(flat, always(posterior), num_samples=samples)
    actual = np.exp(outputs(learner, support, x, jax.random.key(3)))[:, 0]
    mean, variance = (np.asarray(m) for m in logit_moments(posterior, x))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    difference = (mean[:, 0] - mean[:, 1])[:, None] + np.sqrt(variance.sum(1))[:, None] * nodes[None]
    expected = (1 / (1 + np.exp(-difference))) @ weights / weights.sum()
    # A probability's standard deviation is at most 1/2; 5 standard errors.
    np.testing.assert_allclose(actual, expected, atol=5 * 0.5 / np.sqrt(samples))
    shrunk = 1 / (1 + np.exp(-(mean[:, 0] - mean[:, 1])))
    assert np.abs(shrunk - expected).max() > 0.05  # what ignoring the variance would give


def test_without_variance_it_is_a_linear_head(key):
    """T23. Catches noise that does not vanish with the variance, and the infinite slope of a root at zero."""
    posterior = random_posterior(key, 3, 4)
    sure = HeadPosterior(posterior.weight_mean, jnp.full((3, 4), -1e4), posterior.bias_mean, jnp.full((3,), -1e4))
    episode = random_episode(key)
    linear = episode.query.x @ sure.weight_mean.T + sure.bias_mean[None]
    actual = outputs(Versa(flat, always(sure)), episode.support, episode.query.x, key)
    np.testing.assert_allclose(actual, jax.nn.log_softmax(linear), atol=1e-12)
    slopes = jax.grad(lambda p: meta_loss(Versa(flat, always(p)), episode, key))(sure)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def prototype_head(means):
    """The class means themselves, without variance."""
    nothing = jnp.full_like(means, -1e4)
    return HeadPosterior(means, nothing, -0.5 * jnp.sum(means**2, axis=1), nothing[:, 0])


def test_the_class_mean_as_weights_is_half_a_prototypical_network(key):
    """T23. Catches pooled features that are not the mean, and rows of classes mixed up."""
    support = random_examples(key, [2, 0, 2, 1, 2, 0], 3)
    x = jax.random.normal(jax.random.fold_in(key, 1), (5, 4))
    proto = prototypical.predict(prototypical.adapt(prototypical.Prototypical(flat), support), x)
    actual = outputs(Versa(flat, prototype_head), support, x, key)
    np.testing.assert_allclose(actual, jax.nn.log_softmax(0.5 * proto), atol=1e-12)


def test_adding_a_class_leaves_the_others_alone(key):
    """T23. Catches an amortiser that looks at all classes at once, or normalises over them."""
    amortiser = Amortiser(4, key=key)
    small_support = random_examples(key, [0, 1, 0, 1], 2)
    third = jax.random.normal(jax.random.fold_in(key, 1), (2, 4))
    large_support = mk.Examples(
        jnp.concatenate([small_support.x, third]), jnp.append(small_support.y, jnp.array([2, 2])), way=3
    )
    two, three = (adapt(Versa(flat, amortiser), s).posterior for s in (small_support, large_support))
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(three), strict=True):
        np.testing.assert_allclose(a, b[:2], atol=1e-12)


def test_order_and_duplicates_of_the_support_do_not_matter(key):
    """T21. Catches a sum over shots for the mean."""
    s = random_episode(key).support
    order = jax.random.permutation(key, 6)
    shuffled = mk.Examples(s.x[order], s.y[order], way=s.way)
    twice = mk.Examples(jnp.concatenate([s.x, s.x]), jnp.concatenate([s.y, s.y]), way=s.way)
    learner = Versa(flat, Amortiser(4, key=key))
    plain = adapt(learner, s).posterior
    for other in (shuffled, twice):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(adapt(learner, other).posterior), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_the_objective_is_the_log_of_the_mean(key):
    """Catches the mean of the logs, samples added up for averaged, and noise shared by the queries."""
    episode = random_episode(key)
    learner = Versa(flat, always(random_posterior(key, 3, 4)), num_samples=7)
    mean, variance = (np.asarray(m) for m in logit_moments(learner.amortiser(None), episode.query.x))
    logits = mean + np.sqrt(variance) * np.asarray(jax.random.normal(key, (7, 6, 3)))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(outputs(learner, episode.support, episode.query.x, key)), p.mean(0), atol=1e-12)
    chosen = p[:, np.arange(6), np.asarray(episode.query.y)]
    np.testing.assert_allclose(meta_loss(learner, episode, key), -np.log(chosen.mean(0)).mean(), rtol=1e-12)
    assert float(meta_loss(learner, episode, key)) < -np.log(chosen).mean() - 1e-3


def test_a_key_is_needed_and_used(key):
    """Catches samples that are the same in every call, and a default key."""
    episode = random_episode(key)
    learner = small(key)
    adapted = adapt(learner, episode.support)
    first, again, other = (predict(adapted, episode.query.x, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    with pytest.raises(ValueError, match="Versa's predict draws random numbers and needs a key"):
        predict(adapted, episode.query.x)
    with pytest.raises(ValueError, match="Versa's meta_loss draws random numbers and needs a key"):
        meta_loss(learner, episode)


def test_any_number_of_classes_and_shots(key):
    """Catches a learner tied to the way it was built for."""
    learner = small(key)
    for way, shot in ((2, 1), (5, 3)):
        episode = random_episode(key, way=way, shot=shot)
        predicted = outputs(learner, episode.support, episode.query.x, key)
        assert predicted.shape == (2 * way, way)
        np.testing.assert_allclose(jnp.exp(predicted).sum(1), 1, atol=1e-12)


def test_own_loss_is_used(key):
    """Catches a `loss` field that is ignored."""

    def first(outputs, targets, *, reduction):
        assert reduction == "mean"
        return jnp.mean(outputs[:, 0])

    episode = random_episode(key)
    expected = outputs(small(key), episode.support, episode.query.x, key)[:, 0].mean()
    np.testing.assert_allclose(meta_loss(small(key, loss=first), episode, key), expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("norm_policy", POLICIES)
def test_gradient_equals_central_differences(norm_policy, key):
    """Catches a gradient that misses the variance (noise is fixed by the key), or is cut by a where."""
    episode = random_episode(key)
    assert_gradient_is_central_difference(lambda m: meta_loss(m, episode, key), small(key, norm_policy=norm_policy))


def test_a_class_without_support_has_probability_zero_and_finite_gradients(key):
    """Catches the log of a mean of zeros, where its NaN reaches a gradient."""
    support = random_examples(key, [0, 0, 2, 2], way=4)
    query = random_examples(jax.random.fold_in(key, 1), [0, 2], way=4)
    learner = small(key)
    predicted = outputs(learner, support, query.x, key)
    assert jnp.isneginf(predicted[:, jnp.array([1, 3])]).all()
    np.testing.assert_allclose(jnp.exp(predicted).sum(1), 1, atol=1e-12)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(learner, mk.Episode(support, query), key)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_outside_the_range_shows(wrong, key):
    """Catches a label of -1 that wraps around to the last class, or an example that is dropped without a word."""
    support = random_examples(key, [0, 1, 2, wrong], way=3)
    assert jnp.isnan(outputs(small(key), support, support.x[:2], key)).all()


@pytest.mark.parametrize("norm_policy", POLICIES)
def test_what_a_prediction_depends_on(norm_policy, key):
    """Catches an inductive policy that reads the other queries, or a transductive one that does not."""
    episode = random_episode(key)
    # No noise: the draws of a query's logits depend on how many queries there are.
    learner = Versa(Affine(4, 3, key, norm=True), prototype_head, norm_policy=norm_policy)
    adapted = adapt(learner, episode.support)
    assert (adapted.posterior is None) == (norm_policy == "joint")
    together, fewer = (predict(adapted, x, key)[:2] for x in (episode.query.x, episode.query.x[:2]))
    assert (np.abs(together - fewer).max() < 1e-10) == (norm_policy == "inductive")


def test_policies_agree_without_batch_norm(key):
    """Catches a policy that changes anything but statistics."""
    episode = random_episode(key)
    losses = [meta_loss(small(key, norm=False, norm_policy=p), episode, key) for p in ("joint", "transductive")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)


def test_adapted_tasks_can_be_stacked(key):
    """Catches an adapted state that does not survive vmap: adapt many tasks, then predict in all of them."""
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(random_episode)(keys)
    learner = small(key, norm_policy="inductive")
    adapted = eqx.filter_vmap(adapt, in_axes=(None, 0))(learner, episodes.support)
    stacked = eqx.filter_vmap(predict)(adapted, episodes.query.x, keys)
    one = outputs(learner, random_episode(keys[1]).support, episodes.query.x[1], keys[1])
    np.testing.assert_allclose(stacked[1], one, atol=1e-12)


def test_the_amortiser_is_four_perceptrons(key):
    """Catches one network for two of the outputs, another depth, a ReLU, and outputs mixed up."""
    amortiser, means = Amortiser(4, width=5, key=key), jax.random.normal(key, (3, 4))
    posterior = amortiser(means)
    for name in ("weight_mean", "weight_log_variance", "bias_mean", "bias_log_variance"):
        mlp, x = getattr(amortiser, name), np.asarray(means)
        for layer in mlp.hidden:
            x = x @ np.asarray(layer.weight) + np.asarray(layer.bias)
            x = np.where(x > 0, x, np.exp(x) - 1)
        expected = x @ np.asarray(mlp.head.weight) + np.asarray(mlp.head.bias)
        actual = getattr(posterior, name)
        np.testing.assert_allclose(actual, expected.reshape(actual.shape), atol=1e-12, err_msg=name)
    assert [layer.weight.shape for layer in amortiser.bias_mean.hidden] == [(4, 5), (5, 5)]
    first_layers = [mlp.hidden[0].weight for mlp in (amortiser.weight_mean, amortiser.weight_log_variance)]
    assert (first_layers[0] != first_layers[1]).any()


def test_float32_network_under_64_bits(key):
    """Catches noise or a constant of another dtype, which strict promotion refuses."""
    cast = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree)
    learner = Versa(flat, always(cast(random_posterior(key, 3, 4))))
    assert meta_loss(learner, cast(random_episode(key)), key).dtype == jnp.float32


def _labelled(**changes):
    return mk.Examples(**({"x": jnp.ones((4, 3)), "y": jnp.array([0, 1, 0, 1]), "way": 2} | changes))


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (_labelled(way=None), r"support\.way is missing.*Examples\(x, labels, way="),
        (_labelled(y=jnp.ones((4,)), way=None), r"support\.y must hold integer class labels.*float"),
        (_labelled(y=jnp.zeros((4, 2), int)), r"support\.y must hold one label per example.*\[4, 2\]"),
        (_labelled(x=jnp.ones((4, 3, 2))), r"embed must map a batch of \d examples to features"),
        (_labelled(x=jnp.ones((4, 2))), r"Amortiser was built for features of size 3, got 2"),
    ],
)
@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_support_is_refused(support, message, norm_policy, key):
    """Catches an error deep inside a matrix product that does not say which size is wrong."""
    learner = Versa(lambda x: x, Amortiser(3, key=key), norm_policy=norm_policy)
    with pytest.raises(ValueError, match=message):
        outputs(learner, support, support.x, key)


def test_wrong_queries_are_refused(key):
    """Catches a broadcast of one query without its leading axis, or of features of another size."""
    adapted = adapt(Versa(flat, Amortiser(3, key=key)), _labelled())
    for x in (jnp.ones((5, 2)), jnp.ones((3,))):
        with pytest.raises(ValueError, match=r"x must hold examples of the support's shape \[3\], got"):
            predict(adapted, x, key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda key: Versa(flat, flat, num_samples=0), r"num_samples must be at least 1, got 0"),
        (lambda key: Versa(flat, flat, norm_policy="joined"), r"norm_policy='joined' is not known. Did you mean"),
        (lambda key: Amortiser(0, key=key), r"at least 1"),
        (lambda key: Amortiser(3, width=0, key=key), r"at least 1"),
    ],
)
def test_bad_options_are_refused(make, message, key):
    """Catches zero samples, whose mean is NaN, and networks without units."""
    with pytest.raises(ValueError, match=message):
        make(key)


@pytest.mark.slow
def test_training_on_glyphs_helps():
    """Catches a learner that cannot be trained: images of scripts it has never seen."""
    embed_key, head_key = jax.random.split(jax.random.key(0))
    embed = mk.nn.Conv4(1, 28, width=16, key=embed_key)
    assert_training_helps(versa, Versa(embed, Amortiser(16, key=head_key)))
