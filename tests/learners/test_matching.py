"""Matching Networks: identities, edges and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import (
    Affine,
    assert_gradient_is_central_difference,
    clusters,
    flat,
    random_episode,
    random_examples,
)

import metakit as mk
from metakit.learners import matching, prototypical
from metakit.learners._distances import cosine, squared_euclidean
from metakit.learners.matching import FullContext, Matching, adapt, meta_loss, predict

SIMILARITIES = ("cosine", "squared_euclidean")
POLICIES = ("joint", "transductive", "inductive")


@eqx.filter_jit
def outputs(learner, support, x):
    """Adapt and predict; compiled, since op-by-op dispatch is most of the time of tests this small."""
    return predict(adapt(learner, support), x)


def _probabilities(learner, support, x):
    return jnp.exp(outputs(learner, support, x))


def _real_episode(key, out=(), d=4):
    keys = jax.random.split(key, 4)
    x, y = jax.random.normal(keys[0], (6, d)), jax.random.normal(keys[1], (6, *out))
    xq, yq = jax.random.normal(keys[2], (3, d)), jax.random.normal(keys[3], (3, *out))
    return mk.Episode(mk.Examples(x, y), mk.Examples(xq, yq))


def test_is_an_algorithm():
    """Catches a missing or renamed function."""
    assert isinstance(matching, mk.Algorithm)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equals_the_definition(similarity, key):
    """T10. Catches an attention over classes or over queries, and a missing scale or sign."""
    episode = random_episode(key, way=3, shot=2)
    pairwise = {"cosine": cosine, "squared_euclidean": lambda a, b: -squared_euclidean(a, b)}[similarity]
    scores = np.asarray(0.7 * pairwise(episode.query.x, episode.support.x))
    expected = np.zeros((6, 3))
    for q in range(6):
        attention = np.exp(scores[q]) / np.exp(scores[q]).sum()
        for i, label in enumerate(episode.support.y):
            expected[q, int(label)] += attention[i]
    p = _probabilities(Matching(flat, similarity=similarity, scale=0.7), episode.support, episode.query.x)
    np.testing.assert_allclose(p, expected, atol=1e-12)


def test_log_probabilities(key):
    """Catches outputs that are transposed or not normalised: [queries, way], below 0, summing to 1."""
    episode = random_episode(key, way=3, shot=2, queries=4)
    predicted = outputs(Matching(flat), episode.support, episode.query.x)
    assert predicted.shape == (12, 3)
    assert (predicted < 0).all()
    np.testing.assert_allclose(jnp.exp(predicted).sum(1), 1, atol=1e-12)


def test_one_shot_equals_softmax_of_cosines_and_the_prototypical_network(key):
    """T9. Catches a scale in the wrong place: one shot of unit length is the ProtoNet at scale 2."""
    episode = random_episode(key, way=4, shot=1)

    def unit(x):
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    def log_probabilities(scale):
        return outputs(Matching(flat, scale=scale), episode.support, episode.query.x)

    angle = cosine(episode.query.x, episode.support.x)
    np.testing.assert_allclose(log_probabilities(1.0), jax.nn.log_softmax(angle), atol=1e-12)
    proto = prototypical.adapt(prototypical.Prototypical(unit), episode.support)
    logits = prototypical.predict(proto, episode.query.x)
    np.testing.assert_allclose(log_probabilities(2.0), jax.nn.log_softmax(logits), atol=1e-12)


def test_two_shots_differ_from_the_sum_of_logits(key):
    """T10. Catches the common port that takes a softmax over each class's summed cosines."""
    episode = random_episode(key, way=3, shot=2)
    summed = cosine(episode.query.x, episode.support.x) @ jax.nn.one_hot(episode.support.y, 3)
    p = _probabilities(Matching(flat), episode.support, episode.query.x)
    assert np.abs(p - jax.nn.softmax(summed)).max() > 0.01


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_duplicating_every_example_changes_nothing(similarity, key):
    """T10. Catches a sum where the attention is an average."""
    episode = random_episode(key)
    s = episode.support
    twice = mk.Examples(jnp.concatenate([s.x, s.x]), jnp.concatenate([s.y, s.y]), way=s.way)
    learner = Matching(flat, similarity=similarity)
    p = [_probabilities(learner, support, episode.query.x) for support in (s, twice)]
    np.testing.assert_allclose(p[0], p[1], atol=1e-12)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_limits_of_the_scale(similarity, key):
    """T10. Catches an overflow at a large scale, and wrong class frequencies at zero."""
    support = random_examples(key, [0, 0, 0, 1, 2, 2], way=3)
    x = jax.random.normal(jax.random.fold_in(key, 1), (5, 4))
    pairwise = {"cosine": lambda a, b: -cosine(a, b), "squared_euclidean": squared_euclidean}[similarity]
    nearest = support.y[jnp.argmin(pairwise(x, support.x), axis=1)]
    sharp = _probabilities(Matching(flat, similarity=similarity, scale=1e5), support, x)
    np.testing.assert_allclose(sharp, jax.nn.one_hot(nearest, 3), atol=1e-12)
    level = _probabilities(Matching(flat, similarity=similarity, scale=0.0), support, x)
    np.testing.assert_allclose(level, jnp.tile(jnp.array([[1 / 2, 1 / 6, 1 / 3]]), (5, 1)), atol=1e-12)


def test_far_classes_keep_finite_log_probabilities_and_gradients():
    """Catches log(sum of attention): exp(-900) is 0 in float32, so a NaN gradient."""
    x = jnp.array([[0.0], [1.0], [30.0], [31.0]], dtype=jnp.float32)
    support = mk.Examples(x, jnp.array([0, 0, 1, 1]), way=2)
    query = mk.Examples(jnp.zeros((1, 1), jnp.float32), jnp.array([1]), way=2)

    def loss(weight):
        return meta_loss(Matching(lambda x: x * weight, similarity="squared_euclidean"), mk.Episode(support, query))

    value, gradient = jax.value_and_grad(loss)(jnp.ones((), jnp.float32))
    np.testing.assert_allclose(value, 900 + np.log1p(np.exp(-1)), rtol=1e-5)
    np.testing.assert_allclose(gradient, 1800, rtol=1e-2)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_class_without_support_has_probability_zero_and_finite_gradients(similarity, key):
    """Catches log(0) where it reaches a gradient; the rest of the classes still sum to 1."""
    support = random_examples(key, [0, 0, 2], way=4)
    query = random_examples(jax.random.fold_in(key, 1), [0, 2], way=4)
    learner = Matching(Affine(4, 3, key), similarity=similarity)
    predicted = outputs(learner, support, query.x)
    assert jnp.isneginf(predicted[:, jnp.array([1, 3])]).all()
    np.testing.assert_allclose(jnp.exp(predicted).sum(1), 1, atol=1e-12)
    loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(learner, mk.Episode(support, query))
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_outside_the_range_shows(similarity, wrong, key):
    """Catches a label of -1 that wraps around to the last class, or an example that is dropped without a word."""
    support = random_examples(key, [0, 1, 2, wrong], way=3)
    assert jnp.isnan(outputs(Matching(flat, similarity=similarity), support, support.x[3:])).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_noiseless_clusters(similarity, scale, key):
    """Catches a sign error: the example that equals the query must win."""
    episode = clusters(key, way=5, shot=3, queries=4)
    predicted = outputs(Matching(flat, similarity=similarity, scale=scale), episode.support, episode.query.x)
    assert mk.metrics.accuracy(predicted, episode.query.y) >= 0.95


@pytest.mark.parametrize("out", [(), (1,), (2, 3)])
def test_regression_is_the_weighted_mean_of_the_targets(out, key):
    """Catches targets of several axes flattened wrongly, and [n] targets that come back as [n, 1]."""
    episode = _real_episode(key, out)
    attention = jax.nn.softmax(3 * cosine(episode.query.x, episode.support.x))
    predicted = outputs(Matching(flat, scale=3.0), episode.support, episode.query.x)
    np.testing.assert_allclose(predicted, jnp.tensordot(attention, episode.support.y, axes=1), atol=1e-12)
    loss = meta_loss(Matching(flat, scale=3.0), episode)
    np.testing.assert_allclose(loss, jnp.mean((predicted - episode.query.y) ** 2), rtol=1e-12)


def test_regression_of_one_hot_targets_is_classification(key):
    """Catches two rules where the survey has one: the attention adds up encoded targets."""
    episode = random_episode(key)
    real = mk.Examples(episode.support.x, jax.nn.one_hot(episode.support.y, 3))
    p = outputs(Matching(flat), real, episode.query.x)
    np.testing.assert_allclose(p, _probabilities(Matching(flat), episode.support, episode.query.x), atol=1e-12)


def test_own_loss_is_used(key):
    """Catches a `loss` field that is ignored."""

    def hinge(outputs, targets, *, reduction):
        assert reduction == "mean"
        return jnp.mean(jnp.take_along_axis(outputs, targets[:, None], axis=1))

    episode = random_episode(key)
    np.testing.assert_allclose(meta_loss(Matching(flat, loss=hinge), episode), -meta_loss(Matching(flat), episode))


@pytest.mark.parametrize("norm_policy", ["joint", "transductive", "inductive"])
def test_query_network_of_its_own(norm_policy, key):
    """Catches tied f and g: each network must embed its own side, under every policy."""
    episode = random_episode(key)
    g = Affine(4, 3, key, norm=True)
    f = Affine(4, 3, jax.random.fold_in(key, 1), norm=True)
    s, x = episode.support.x, episode.query.x
    both = jnp.concatenate([s, x])
    features = {
        "joint": lambda: (g(both)[:6], f(both)[6:]),
        "transductive": lambda: (g(s), f(x)),
        "inductive": lambda: (g(s), mk.nn.freeze_statistics(f, s)(x)),
    }[norm_policy]()
    expected = jax.nn.softmax(cosine(features[1], features[0])) @ jax.nn.one_hot(episode.support.y, 3)
    learner = Matching(g, embed_query=f, norm_policy=norm_policy)
    np.testing.assert_allclose(_probabilities(learner, episode.support, x), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "real"),
    [
        ({"norm_policy": "joint"}, False),
        ({"norm_policy": "transductive", "similarity": "squared_euclidean"}, False),
        ({"norm_policy": "inductive", "context": True}, False),
        ({"norm_policy": "joint", "context": True, "similarity": "squared_euclidean"}, True),
        ({"norm_policy": "inductive"}, True),
    ],
)
def test_gradient_equals_central_differences(options, real, key):
    """Catches a gradient cut in the stable sum over a class, the LSTMs, frozen statistics or the scale."""
    context = FullContext(3, num_steps=2, key=key) if options.get("context") else None
    episode = _real_episode(key, (2,)) if real else random_episode(key)
    learner = Matching(Affine(4, 3, key, norm=True), scale=mk.learned(1.3), **(options | {"context": context}))
    assert_gradient_is_central_difference(lambda m: meta_loss(m, episode), learner)


@pytest.mark.parametrize("norm_policy", POLICIES)
def test_what_a_prediction_depends_on(norm_policy, key):
    """Catches an inductive policy that reads the other queries, or a transductive one that does not."""
    episode = random_episode(key)
    learner = Matching(
        Affine(4, 3, key, norm=True), norm_policy=norm_policy, context=FullContext(3, num_steps=2, key=key)
    )
    adapted = adapt(learner, episode.support)
    together = predict(adapted, episode.query.x)[:2]
    fewer = predict(adapted, episode.query.x[:2])
    assert (np.abs(together - fewer).max() < 1e-12) == (norm_policy == "inductive")


@pytest.mark.parametrize("full_context", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_jit_and_vmap_equal_the_loop(full_context, real, key):
    """Catches Python control flow on values, and tasks that see each other; keys come by position."""
    make = _real_episode if real else random_episode
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(make)(keys)
    learner = Matching(
        Affine(4, 3, key, norm=True), context=FullContext(3, num_steps=2, key=key) if full_context else None
    )
    batched = eqx.filter_jit(eqx.filter_vmap(meta_loss, in_axes=(None, 0, 0)))(learner, episodes, keys)
    np.testing.assert_allclose(batched, [eqx.filter_jit(meta_loss)(learner, make(k)) for k in keys], rtol=1e-10)


def test_adapted_tasks_can_be_stacked(key):
    """Catches an adapted state that does not survive vmap: adapt many tasks, then predict in all of them."""
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(random_episode)(keys)
    learner = Matching(Affine(4, 3, key))
    adapted = eqx.filter_vmap(adapt, in_axes=(None, 0))(learner, episodes.support)
    stacked = eqx.filter_vmap(predict)(adapted, episodes.query.x)
    one = outputs(learner, random_episode(keys[1]).support, episodes.query.x[1])
    np.testing.assert_allclose(stacked[1], one, atol=1e-12)


def test_float32_network_under_64_bits(key):
    """Catches a scale or a constant of another dtype, which strict promotion refuses."""
    episode = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, random_episode(key))
    assert meta_loss(Matching(flat, scale=10.0), episode).dtype == jnp.float32


def test_only_learned_scales_are_trained():
    """Catches training that moves the paper's fixed temperature."""
    assert not mk.trainable(Matching(flat)).scale.value
    assert mk.trainable(Matching(flat, scale=mk.learned(10.0))).scale.value


_X = jnp.ones((4, 3))


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (mk.Examples(_X, jnp.array([0, 1, 0, 1])), r"support\.way is missing.*Examples\(x, labels, way="),
        (mk.Examples(_X, jnp.zeros((4, 2), int), way=2), r"support\.y must hold one label per example"),
        (mk.Examples(jnp.ones((4, 3, 2)), jnp.array([0, 1, 0, 1]), way=2), r"embed must map a batch of"),
    ],
)
@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_support_is_refused(support, message, norm_policy):
    """Catches integer labels regressed as if they were real values, and embeddings that are not [n, d]."""
    learner = Matching(lambda x: x, norm_policy=norm_policy)
    with pytest.raises(ValueError, match=message):
        outputs(learner, support, support.x)


@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({}, jnp.ones((5, 2)), r"x must hold examples of the support's shape \[3\], got \[2\]"),
        ({"embed_query": lambda x: x[:, :2]}, _X, r"features of one size, got 3 and 2"),
        ({"embed_query": lambda x: x[0]}, _X, r"embed_query must map a batch of"),
        ({"context": 2}, _X, r"context was built for embeddings of size 2, got 3"),
    ],
)
def test_sizes_that_disagree_are_refused(options, x, message, norm_policy, key):
    """Catches an error from deep inside a matrix product that names neither argument."""
    if "context" in options:
        options = {"context": FullContext(options["context"], key=key)}
    adapted = adapt(Matching(flat, norm_policy=norm_policy, **options), mk.Examples(_X, jnp.array([0, 1, 0, 1]), way=2))
    with pytest.raises(ValueError, match=message):
        predict(adapted, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "cosin"}, r"similarity='cosin' is not known. Did you mean 'cosine'"),
        (
            {"norm_policy": "transduction"},
            r"norm_policy='transduction' is not known. Did you mean 'transductive'",
        ),
        ({"scale": jnp.ones((3,))}, r"scale must be one number, got shape \[3\]"),
    ],
)
def test_unknown_options_are_refused(options, message):
    """Catches a misspelt option that falls back to the default, and a scale that broadcasts."""
    with pytest.raises(ValueError, match=message):
        Matching(flat, **options)
