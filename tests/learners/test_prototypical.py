"""Prototypical Networks: identities, edges and errors."""

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
from metakit.learners import prototypical
from metakit.learners.prototypical import Prototypical, adapt, meta_loss, predict, prototypes


@eqx.filter_jit
def outputs(learner, support, x):
    """Adapt and predict; compiled, since op-by-op dispatch is most of the time of tests this small."""
    return predict(adapt(learner, support), x)


def test_is_an_algorithm():
    """Catches a missing or renamed function."""
    assert isinstance(prototypical, mk.Algorithm)


def test_equals_a_linear_softmax(key):
    """T8. Catches a missing factor 2, a square root, or a division by d: w = 2c, b = -|c|²."""
    episode = random_episode(key, way=4, shot=3, d=5)
    c, _ = prototypes(episode.support.x, episode.support.y[:, None] == jnp.arange(4)[None])
    linear = 2 * episode.query.x @ c.T - jnp.sum(c**2, axis=1)[None]
    logits = outputs(Prototypical(flat), episode.support, episode.query.x)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(linear), atol=1e-12)


def test_rotating_and_translating_the_features_changes_nothing(key):
    """Catches a distance that is not Euclidean, or a mean that is not a mean."""
    episode = random_episode(key, d=4)
    rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 9), (4, 4)))

    def score(embed):
        return outputs(Prototypical(embed), episode.support, episode.query.x)

    moved = score(lambda x: x @ rotation + 7.0)
    np.testing.assert_allclose(moved, score(flat), rtol=1e-10, atol=1e-10)


def test_one_shot_of_unit_length_is_the_cosine_with_scale_two(key):
    """T9 and T11. Catches prototypes that differ from the embeddings at one shot."""
    episode = random_episode(key, way=3, shot=1)

    def unit(x):
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    euclidean = outputs(Prototypical(unit), episode.support, episode.query.x)
    angle = outputs(Prototypical(flat, distance="cosine", scale=2.0), episode.support, episode.query.x)
    np.testing.assert_allclose(jax.nn.softmax(euclidean), jax.nn.softmax(angle), atol=1e-12)
    means, _ = prototypes(episode.support.x, episode.support.y[:, None] == jnp.arange(3)[None])
    np.testing.assert_allclose(means, episode.support.x, atol=1e-15)


def test_each_class_is_divided_by_its_own_count(key):
    """T11. Catches a division by the shot of another class, or by n/way; the classes come unsorted."""
    labels = [2, 0, 2, 1, 2, 0]
    x = jax.random.normal(key, (6, 3))
    means, present = prototypes(x, jnp.asarray(labels)[:, None] == jnp.arange(3)[None])
    expected = [np.mean([x[i] for i in range(6) if labels[i] == c], axis=0) for c in range(3)]
    np.testing.assert_allclose(means, expected, atol=1e-14)
    assert present.all()


def test_unbalanced_support_by_hand():
    """Catches the same in the scores: prototypes (2, 0) of two examples and (9, 9) of one."""
    support = mk.Examples(jnp.array([[1.0, 0.0], [9.0, 9.0], [3.0, 0.0]]), jnp.array([0, 1, 0]), way=2)
    logits = outputs(Prototypical(flat), support, jnp.array([[2.0, 1.0], [9.0, 8.0]]))
    np.testing.assert_allclose(logits, [[-1.0, -113.0], [-113.0, -1.0]], atol=1e-12)


def test_prototypes_under_vmap(key):
    """Catches a task axis that leaks between tasks."""
    x = jax.random.normal(key, (3, 6, 4))
    labels = jax.random.randint(jax.random.fold_in(key, 1), (3, 6), 0, 2)
    members = labels[:, :, None] == jnp.arange(2)[None, None]
    means, present = jax.vmap(prototypes)(x, members)
    for task in range(3):
        one, there = prototypes(x[task], members[task])
        np.testing.assert_allclose(means[task], one, atol=1e-15)
        assert (present[task] == there).all()


@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
def test_a_class_without_support_has_probability_zero_and_finite_gradients(distance, key):
    """Catches 0/0 in the mean, an absent class that wins by its zero prototype, and NaN gradients."""
    support = random_examples(key, [0, 0, 2, 2], way=4)
    query = random_examples(jax.random.fold_in(key, 1), [0, 2], way=4)
    x = jnp.zeros_like(query.x).at[1].set(query.x[1])  # the first query sits on the zero prototype
    learner = Prototypical(Affine(4, 3, key), distance=distance)
    logits = outputs(learner, support, x)
    assert jnp.isneginf(logits[:, jnp.array([1, 3])]).all()
    assert jnp.isfinite(logits[:, jnp.array([0, 2])]).all()
    loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(learner, mk.Episode(support, query))
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    means, present = prototypes(support.x, support.y[:, None] == jnp.arange(4)[None])
    assert (means[1] == 0).all()
    assert present.tolist() == [True, False, True, False]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_outside_the_range_shows(wrong, key):
    """Catches a label of -1 that wraps around to the last class, or an example that is dropped without a word."""
    support = random_examples(key, [0, 1, 2, wrong], way=3)
    assert jnp.isnan(outputs(Prototypical(flat), support, jax.random.normal(key, (2, 4)))).all()


@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_noiseless_clusters(distance, scale, key):
    """Catches a sign error: the nearest prototype must score highest."""
    episode = clusters(key, way=5, shot=3, queries=4)
    logits = predict(adapt(Prototypical(flat, distance=distance, scale=scale), episode.support), episode.query.x)
    assert mk.metrics.accuracy(logits, episode.query.y) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("norm_policy", ["joint", "transductive", "inductive"])
@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
def test_gradient_equals_central_differences(distance, norm_policy, key):
    """Catches a gradient cut by the distance, by frozen statistics, or missing for the scale."""
    episode = random_episode(key)
    learner = Prototypical(
        Affine(4, 3, key, norm=True), distance=distance, scale=mk.learned(0.7), norm_policy=norm_policy
    )
    assert_gradient_is_central_difference(lambda m: meta_loss(m, episode), learner)


@pytest.mark.parametrize("norm_policy", ["joint", "transductive", "inductive"])
def test_what_a_score_depends_on(norm_policy, key):
    """Catches an inductive policy that reads the other queries, or a transductive one that does not."""
    episode = random_episode(key)
    learner = Prototypical(Affine(4, 3, key, norm=True), norm_policy=norm_policy)
    adapted = adapt(learner, episode.support)
    together = predict(adapted, episode.query.x)[:2]
    fewer = predict(adapted, episode.query.x[:2])
    assert (np.abs(together - fewer).max() < 1e-12) == (norm_policy == "inductive")


def test_joint_policy_embeds_support_and_queries_in_one_batch(key):
    """Catches a joint policy that is silently the transductive one."""
    episode = random_episode(key)
    embed = Affine(4, 3, key, norm=True)
    both = embed(jnp.concatenate([episode.support.x, episode.query.x]))
    c, _ = prototypes(both[:6], episode.support.y[:, None] == jnp.arange(3)[None])
    expected = -jnp.sum((both[6:, None] - c[None]) ** 2, axis=-1)
    logits = outputs(Prototypical(embed), episode.support, episode.query.x)
    np.testing.assert_allclose(logits, expected, atol=1e-12)


def test_policies_agree_without_batch_norm(key):
    """Catches a policy that changes anything but statistics."""
    episode = random_episode(key)
    losses = [meta_loss(Prototypical(Affine(4, 3, key), norm_policy=p), episode) for p in ("joint", "transductive")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)


@pytest.mark.parametrize("norm_policy", ["joint", "transductive", "inductive"])
def test_jit_and_vmap_equal_the_loop(norm_policy, key):
    """Catches Python control flow on values, and tasks that see each other; keys come by position."""
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(random_episode)(keys)
    learner = Prototypical(Affine(4, 3, key, norm=True), norm_policy=norm_policy)
    batched = eqx.filter_jit(eqx.filter_vmap(meta_loss, in_axes=(None, 0, 0)))(learner, episodes, keys)
    one = eqx.filter_jit(meta_loss)
    loop = [one(learner, random_episode(k)) for k in keys]
    np.testing.assert_allclose(batched, loop, rtol=1e-10)


def test_adapted_tasks_can_be_stacked(key):
    """Catches an adapted state that does not survive vmap: adapt many tasks, then predict in all of them."""
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(random_episode)(keys)
    learner = Prototypical(Affine(4, 3, key, norm=True), norm_policy="inductive")
    adapted = eqx.filter_vmap(adapt, in_axes=(None, 0))(learner, episodes.support)
    stacked = eqx.filter_vmap(predict)(adapted, episodes.query.x)
    one = outputs(learner, random_episode(keys[1]).support, episodes.query.x[1])
    np.testing.assert_allclose(stacked[1], one, atol=1e-12)


def test_changing_numbers_does_not_trace_again(key):
    """Catches a scale that is a static field."""
    traces = 0

    @eqx.filter_jit
    def loss(learner, episode):
        nonlocal traces
        traces += 1
        return meta_loss(learner, episode)

    episode = random_episode(key)
    embed = Affine(4, 3, key)
    for scale in (1.0, 2.0, 10):
        loss(Prototypical(embed, scale=scale), episode)
    assert traces == 1


def test_float32_network_under_64_bits(key):
    """Catches a scale or a constant of another dtype, which strict promotion refuses."""
    episode = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, random_episode(key))
    assert meta_loss(Prototypical(flat, scale=10.0), episode).dtype == jnp.float32


def _labelled(**changes):
    fields = {"x": jnp.ones((4, 3)), "y": jnp.array([0, 1, 0, 1]), "way": 2} | changes
    return mk.Examples(**fields)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (_labelled(way=None), r"support\.way is missing.*Examples\(x, labels, way="),
        (_labelled(y=jnp.ones((4,)), way=None), r"support\.y must hold integer class labels.*float"),
        (_labelled(y=jnp.zeros((4, 2), int)), r"support\.y must hold one label per example.*\[4, 2\]"),
        (
            _labelled(x=jnp.ones((4, 3, 2, 2))),
            r"embed must map a batch of \d examples to features.*3, 2, 2\]",
        ),
    ],
)
@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_support_is_refused(support, message, norm_policy):
    """Catches an error deep inside jax, or none: feature maps would give plausible numbers."""
    learner = Prototypical(lambda x: x, norm_policy=norm_policy)
    with pytest.raises(ValueError, match=message):
        outputs(learner, support, support.x)


@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_queries_are_refused(norm_policy):
    """Catches a broadcast of one query without its leading axis, or of features of another size."""
    adapted = adapt(Prototypical(flat, norm_policy=norm_policy), _labelled())
    with pytest.raises(ValueError, match=r"x must hold examples of the support's shape \[3\], got \[2\]"):
        predict(adapted, jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"x must hold examples of the support's shape \[3\], got \[\]"):
        predict(adapted, jnp.ones((3,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "euclidean"}, r"distance='euclidean' is not known. Did you mean 'squared_euclidean'"),
        ({"norm_policy": "joined"}, r"norm_policy='joined' is not known. Did you mean 'joint'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    """Catches a misspelt option that silently falls back to the default."""
    with pytest.raises(ValueError, match=message):
        Prototypical(flat, **options)


def test_inductive_without_batch_norm_says_so():
    """Catches a policy that reports an inductive result for a network with nothing to freeze."""
    with pytest.raises(ValueError, match="no BatchStatNorm"):
        adapt(Prototypical(flat, norm_policy="inductive"), _labelled())


def test_only_learned_scales_are_trained():
    """Catches training that moves the paper's fixed temperature."""
    assert not mk.trainable(Prototypical(flat)).scale.value
    assert mk.trainable(Prototypical(flat, scale=mk.learned(10.0))).scale.value
