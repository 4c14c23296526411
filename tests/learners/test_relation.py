"""Relation Networks: the definition, the published loss, policies, edges and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import assert_gradient_is_central_difference, assert_training_helps

import metakit as mk
from metakit.learners import relation
from metakit.learners.relation import Relation, adapt, meta_loss, predict, score_error

POLICIES = ("joint", "transductive", "inductive")


@eqx.filter_jit
def outputs(learner, support, x):
    """Adapt and predict; compiled, since op-by-op dispatch is most of the time of tests this small."""
    return predict(adapt(learner, support), x)


def identity(x):
    return x


def products(classes, queries):
    """The sum of a class map times a query map."""
    return jnp.einsum("nchw,jchw->jn", classes, queries)


class Embed(eqx.Module):
    """Maps of two channels, smooth, with a batch norm or without."""

    conv: mk.nn.Conv2d
    norm: eqx.Module | None

    def __init__(self, key, norm=True):
        self.conv = mk.nn.Conv2d(1, 2, 3, key=key)
        self.norm = mk.nn.BatchStatNorm(2) if norm else None

    def __call__(self, x):
        y = self.conv(x)
        return jnp.tanh(y if self.norm is None else self.norm(y))


class Compare(eqx.Module):
    """A smooth relation module, with a batch norm or without."""

    weight: jax.Array
    norm: eqx.Module | None

    def __init__(self, key, norm=True):
        self.weight = jax.random.normal(key, (2, 2))
        self.norm = mk.nn.BatchStatNorm(2) if norm else None

    def __call__(self, classes, queries):
        pairs = (queries.sum((2, 3))[:, None] - classes.sum((2, 3))[None]).reshape(-1, 2)
        x = pairs if self.norm is None else self.norm(pairs)
        return jnp.tanh(x @ self.weight).sum(1).reshape(len(queries), len(classes))


def examples(key, labels, way, side=4):
    return mk.Examples(jax.random.normal(key, (len(labels), 1, side, side)), jnp.asarray(labels), way=way)


def random_episode(key, way=3, shot=2, queries=2):
    k1, k2 = jax.random.split(key)
    return mk.Episode(
        examples(k1, [i % way for i in range(way * shot)], way),
        examples(k2, [i % way for i in range(way * queries)], way),
    )


def small(key, norm=(True, True), **options):
    k1, k2 = jax.random.split(key)
    return Relation(Embed(k1, norm[0]), Compare(k2, norm[1]), **options)


def test_is_an_algorithm():
    """Catches a missing or renamed function."""
    assert isinstance(relation, mk.Algorithm)


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_a_class_is_the_sum_of_its_maps(pool, key):
    """Catches a mean where the paper has a sum, and shots of other classes; unsorted labels, unequal shots."""
    labels = [2, 0, 2, 1, 2, 0]
    support, x = examples(key, labels, 3), jax.random.normal(jax.random.fold_in(key, 1), (4, 1, 4, 4))
    reduce = {"sum": np.sum, "mean": np.mean}[pool]
    classes = [reduce([support.x[i] for i in range(6) if labels[i] == c], axis=0) for c in range(3)]
    expected = [[np.sum(q * c) for c in classes] for q in np.asarray(x)]
    np.testing.assert_allclose(outputs(Relation(identity, products, pool=pool), support, x), expected, atol=1e-12)


def test_the_mean_does_not_grow_with_the_shot(key):
    """Catches `pool` that is ignored: duplicating the support changes the sum only."""
    episode = random_episode(key)
    s = episode.support
    twice = mk.Examples(jnp.concatenate([s.x, s.x]), jnp.concatenate([s.y, s.y]), way=s.way)
    for pool, factor in (("mean", 1.0), ("sum", 2.0)):
        learner = Relation(identity, products, pool=pool)
        once, again = (outputs(learner, support, episode.query.x) for support in (s, twice))
        np.testing.assert_allclose(again, factor * once, atol=1e-12)


@pytest.mark.slow
def test_the_published_module_gets_class_and_query_maps(key):
    """Catches swapped arguments, or maps that lost their space, on the way to the published network."""
    k1, k2 = jax.random.split(key)
    embed = mk.nn.RelationEmbedding(1, 16, width=2, padding="SAME", key=k1)
    module = mk.nn.RelationModule(2, embed.map_size, width=2, key=k2)
    support = examples(key, [0, 1], 2, side=16)
    x = jax.random.normal(jax.random.fold_in(key, 1), (3, 1, 16, 16))
    np.testing.assert_allclose(
        outputs(Relation(embed, module), support, x), module(embed(support.x), embed(x)), atol=1e-10
    )


def test_the_published_loss_by_hand():
    """Catches a sum over classes for the mean, scores that skip the sigmoid, and targets of -1 and 1."""
    logits, labels = jnp.array([[0.0, 2.0], [-1.0, 3.0]]), jnp.array([0, 1])
    r = 1 / (1 + np.exp(-np.asarray(logits)))
    each = [((1 - r[0, 0]) ** 2 + r[0, 1] ** 2) / 2, (r[1, 0] ** 2 + (1 - r[1, 1]) ** 2) / 2]
    np.testing.assert_allclose(score_error(logits, labels, reduction="none"), each, rtol=1e-12)
    np.testing.assert_allclose(score_error(logits, labels, reduction="mean"), np.mean(each), rtol=1e-12)
    np.testing.assert_allclose(score_error(logits, labels, reduction="sum"), np.sum(each), rtol=1e-12)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_query_label_outside_the_range_shows_in_loss_and_gradient(wrong):
    """Catches an example whose target is all zeros, which would train every score towards 0."""
    value, gradient = jax.value_and_grad(lambda z: score_error(z, jnp.array([0, wrong]), reduction="mean"))(
        jnp.zeros((2, 2))
    )
    assert jnp.isnan(value)
    assert jnp.isnan(gradient[1]).all()


def test_loss_of_a_task(key):
    """Catches a `loss` field that is ignored: the published one by default, cross-entropy of the scores if asked."""
    episode = random_episode(key)
    scores = outputs(small(key), episode.support, episode.query.x)
    wanted = jax.nn.one_hot(episode.query.y, 3)
    np.testing.assert_allclose(meta_loss(small(key), episode), jnp.mean((jax.nn.sigmoid(scores) - wanted) ** 2))
    expected = -jnp.mean(jnp.sum(jax.nn.log_softmax(scores) * wanted, axis=1))
    np.testing.assert_allclose(meta_loss(small(key, loss=mk.losses.cross_entropy), episode), expected, rtol=1e-12)


def test_any_number_of_classes_and_shots(key):
    """Catches a learner tied to the way it was built for."""
    learner = small(key)
    for way, shot in ((2, 1), (5, 3)):
        episode = random_episode(key, way=way, shot=shot)
        assert outputs(learner, episode.support, episode.query.x).shape == (2 * way, way)


@pytest.mark.parametrize("loss", [score_error, mk.losses.cross_entropy])
def test_a_class_without_support_never_wins_and_leaves_finite_gradients(loss, key):
    """Catches a zero map that scores well, and NaN from minus infinity."""
    support, query = examples(key, [0, 0, 2, 2], 4), examples(jax.random.fold_in(key, 1), [0, 2], 4)
    learner = small(key, loss=loss)
    scores = outputs(learner, support, query.x)
    assert jnp.isneginf(scores[:, jnp.array([1, 3])]).all()
    assert jnp.isfinite(scores[:, jnp.array([0, 2])]).all()
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_loss))(learner, mk.Episode(support, query))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_support_label_outside_the_range_shows(wrong, key):
    """Catches a label of -1 that wraps around to the last class, or an example that is dropped without a word."""
    support = examples(key, [0, 1, 2, wrong], 3)
    assert jnp.isnan(outputs(small(key), support, support.x[:2])).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm_policy", POLICIES)
@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_gradient_equals_central_differences(norm_policy, pool, key):
    """Catches a gradient cut by the pooling, the frozen statistics of either network, or the sigmoid."""
    episode = random_episode(key)
    learner = small(key, norm_policy=norm_policy, pool=pool)
    # Differences of pairs in a batch norm bend quickly: a step of 1e-5 leaves a truncation error above 1e-9.
    assert_gradient_is_central_difference(lambda m: meta_loss(m, episode), learner, step=1e-6)


@pytest.mark.parametrize("norm_policy", POLICIES)
def test_what_a_score_depends_on(norm_policy, key):
    """Catches an inductive policy that leaves the relation module reading the other queries."""
    episode = random_episode(key)
    adapted = adapt(small(key, norm_policy=norm_policy), episode.support)
    together, fewer = predict(adapted, episode.query.x)[:2], predict(adapted, episode.query.x[:2])
    assert (np.abs(together - fewer).max() < 1e-12) == (norm_policy == "inductive")


def test_each_policy_written_out(key):
    """Catches statistics from another batch than the policy names, in either network."""
    episode = random_episode(key, shot=1)
    s, x = episode.support.x, episode.query.x
    learner = small(key)
    embed, compare = learner.embed, learner.relation
    both = embed(jnp.concatenate([s, x]))
    frozen = mk.nn.freeze_statistics(embed, s)
    maps = frozen(s)
    pairs = (maps.sum((2, 3))[:, None] - maps.sum((2, 3))[None]).reshape(-1, 2)
    statistics = mk.nn.freeze_statistics(compare.norm, pairs)
    expected = {
        "transductive": compare(embed(s), embed(x)),
        "joint": compare(both[:3], both[3:]),
        "inductive": eqx.tree_at(lambda m: m.norm, compare, statistics)(maps, frozen(x)),
    }
    for policy, scores in expected.items():
        actual = outputs(small(key, norm_policy=policy), episode.support, x)
        np.testing.assert_allclose(actual, scores, atol=1e-10, err_msg=policy)


@pytest.mark.parametrize("norm", [(True, False), (False, True)])
def test_inductive_needs_a_batch_norm_in_one_of_the_networks(norm, key):
    """Catches a policy that refuses a learner with something to freeze, or accepts one without."""
    episode = random_episode(key)
    learner = small(key, norm, norm_policy="inductive")
    adapted = adapt(learner, episode.support)
    alone = predict(adapted, episode.query.x[:1])
    np.testing.assert_allclose(predict(adapted, episode.query.x)[:1], alone, atol=1e-12)
    with pytest.raises(ValueError, match="no BatchStatNorm"):
        adapt(small(key, (False, False), norm_policy="inductive"), episode.support)


def test_adapted_tasks_can_be_stacked(key):
    """Catches an adapted state that does not survive vmap: adapt many tasks, then predict in all of them."""
    keys = jax.random.split(key, 3)
    episodes = eqx.filter_vmap(random_episode)(keys)
    learner = small(key, norm_policy="inductive")
    adapted = eqx.filter_vmap(adapt, in_axes=(None, 0))(learner, episodes.support)
    stacked = eqx.filter_vmap(predict)(adapted, episodes.query.x)
    one = outputs(learner, random_episode(keys[1]).support, episodes.query.x[1])
    np.testing.assert_allclose(stacked[1], one, atol=1e-10)


def test_float32_network_under_64_bits(key):
    """Catches a constant of another dtype, which strict promotion refuses."""
    episode = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, random_episode(key))
    assert meta_loss(Relation(identity, products), episode).dtype == jnp.float32


def _labelled(**changes):
    return mk.Examples(**({"x": jnp.ones((4, 1, 4, 4)), "y": jnp.array([0, 1, 0, 1]), "way": 2} | changes))


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (_labelled(way=None), r"support\.way is missing.*Examples\(x, labels, way="),
        (_labelled(y=jnp.ones((4,)), way=None), r"support\.y must hold integer class labels.*float"),
        (_labelled(y=jnp.zeros((4, 2), int)), r"support\.y must hold one label per example.*\[4, 2\]"),
        (
            _labelled(x=jnp.ones((4, 3))),
            r"embed must map a batch of \d examples to feature maps.*Leave out the pooling",
        ),
    ],
)
@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_support_is_refused(support, message, norm_policy):
    """Catches an error deep inside a convolution: flat features have no space to convolve."""
    with pytest.raises(ValueError, match=message):
        outputs(Relation(identity, products, norm_policy=norm_policy), support, support.x)


@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_wrong_queries_are_refused(norm_policy):
    """Catches one query without its leading axis, or images of another size."""
    adapted = adapt(Relation(identity, products, norm_policy=norm_policy), _labelled())
    for x in (jnp.ones((5, 1, 4, 3)), jnp.ones((1, 4, 4))):
        with pytest.raises(ValueError, match=r"x must hold examples of the support's shape \[1, 4, 4\], got"):
            predict(adapted, x)


def test_a_relation_of_another_shape_is_refused(key):
    """Catches scores [way, query], which broadcast where way and queries agree."""
    with pytest.raises(ValueError, match=r"one score for every query and class, \[3, 2\], got \[2, 3\]"):
        outputs(Relation(identity, lambda c, q: products(c, q).T), _labelled(), jnp.ones((3, 1, 4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, r"pool='max' is not known. .*sum, mean"),
        ({"norm_policy": "joined"}, r"norm_policy='joined' is not known. Did you mean 'joint'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    """Catches a misspelt option that silently falls back to the default."""
    with pytest.raises(ValueError, match=message):
        Relation(identity, products, **options)


@pytest.mark.slow
def test_training_the_published_networks_on_glyphs_helps():
    """Catches a learner that cannot be trained as published: images of scripts it has never seen."""
    embed_key, module_key = jax.random.split(jax.random.key(0))
    embed = mk.nn.RelationEmbedding(width=16, key=embed_key)
    module = mk.nn.RelationModule(16, embed.map_size, width=16, key=module_key)
    assert_training_helps(relation, Relation(embed, module))
