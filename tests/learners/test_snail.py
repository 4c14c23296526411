"""SNAIL: what its tokens are, what a query sees, the published widths, and errors."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import Affine, assert_gradient_is_central_difference, flat, random_episode, random_examples
from scipy import stats

import metakit as mk
from metakit.learners import snail
from metakit.learners.snail import SNAIL, adapt, few_shot, few_shot_trunk, meta_loss, predict

KEY = jax.random.key(0)
policies = pytest.mark.parametrize("norm_policy", ["joint", "transductive", "inductive"])


def small(embed=flat, features=4, way=3, length=7, **options):
    """Attention, convolutions, attention, and a head, all as small as can be."""
    keys = jax.random.split(KEY, 4)
    first = mk.nn.CausalAttention(features + way, 3, 2, key=keys[0])
    middle = mk.nn.TemporalConvolution(first.out_size, 2, length=length, key=keys[1])
    last = mk.nn.CausalAttention(middle.out_size, 3, 2, key=keys[2])
    trunk = mk.nn.CausalSequence([first, middle, last], length=length)
    return SNAIL(embed, trunk, mk.nn.Linear(trunk.out_size, way, key=keys[3]), **options)


@eqx.filter_jit
def outputs(learner, support, x):
    return predict(adapt(learner, support), x)


compiled_loss = eqx.filter_jit(meta_loss)


@pytest.mark.parametrize(
    ("way", "shot", "widths"),
    [
        (5, 1, [69, 101, 485, 613, 997, 1253]),
        (5, 5, [69, 101, 741, 869, 1509, 1765]),
        (20, 1, [84, 116, 756, 884, 1524, 1780]),
        (20, 5, [84, 116, 1012, 1140, 2036, 2292]),
    ],
)
@pytest.mark.parametrize("paper_dilation", [False, True])
def test_published_widths(way, shot, widths, paper_dilation):
    """T14. A block of another size or in another place, or one dilation too many or too few."""

    def build(key):
        return few_shot(flat, 64, way=way, shot=shot, paper_dilation=paper_dilation, key=key)

    learner = eqx.filter_eval_shape(build, KEY)
    layers = learner.trunk.layers
    assert [layers[0].in_size, *(layer.out_size for layer in layers)] == widths
    assert learner.trunk.length == way * shot + 1
    assert learner.head.weight.shape == (widths[-1], way)
    assert [layer.key.weight.shape[1] for layer in layers[::2]] == [64, 256, 512]
    assert layers[1].blocks[0].filter.dilation == 1 + paper_dilation


@pytest.mark.parametrize("norm_policy", ["joint", "transductive"])
def test_a_query_is_the_last_token_without_its_label(norm_policy):
    """T14. A label slot that is not zero, tokens in another order, or the output of another token."""
    episode, learner = random_episode(KEY), small(norm_policy=norm_policy)
    labels = jnp.eye(3)[episode.support.y]
    support = jnp.concatenate([episode.support.x, labels], axis=1)
    logits = outputs(learner, episode.support, episode.query.x)
    read = eqx.filter_jit(lambda learner, tokens: learner.head(learner.trunk(tokens)[-1:])[0])
    for x, row in zip(episode.query.x, logits, strict=True):
        query = jnp.concatenate([x, jnp.zeros(3)])
        np.testing.assert_allclose(row, read(learner, jnp.concatenate([support, query[None]])), atol=1e-12)
    expected = mk.losses.cross_entropy(logits, episode.query.y, reduction="mean")
    np.testing.assert_allclose(compiled_loss(learner, episode), expected, atol=1e-12)


def test_the_support_is_read_in_the_order_given():
    """A support set that is sorted or shuffled on the way, or attention alone, which sees no order."""
    episode, learner = random_episode(KEY), small()
    order = jnp.array([3, 0, 5, 1, 4, 2])
    other = mk.Examples(episode.support.x[order], episode.support.y[order], way=3)
    first, second = (outputs(learner, support, episode.query.x) for support in (episode.support, other))
    assert np.abs(first - second).max() > 1e-6


def test_the_label_of_every_support_example_counts():
    """Labels that never reach the network: every prediction would be a guess."""
    episode, learner = random_episode(KEY), small()
    before = outputs(learner, episode.support, episode.query.x)
    for i in range(6):
        y = episode.support.y.at[i].set((episode.support.y[i] + 1) % 3)
        after = outputs(learner, mk.Examples(episode.support.x, y, way=3), episode.query.x)
        assert (np.abs(after - before).max(axis=1) > 1e-9).all()


def test_fewer_shots_than_it_was_built_for():
    """A cache with room to spare whose empty rows are attended to."""
    episode, roomy = random_episode(KEY, shot=1), small(length=7)
    # The same numbers in a trunk without room: three examples and a query.
    tight = eqx.tree_at(lambda s: s.trunk, roomy, mk.nn.CausalSequence(roomy.trunk.layers, length=4))
    for learner in (roomy, tight):
        logits = outputs(learner, episode.support, episode.query.x)
        np.testing.assert_allclose(logits, outputs(tight, episode.support, episode.query.x), atol=1e-13)


@policies
def test_what_a_score_depends_on(norm_policy):
    """An inductive policy that reads the other queries, or a transductive one that does not."""
    episode, learner = random_episode(KEY), small(Affine(4, 4, KEY, norm=True), norm_policy=norm_policy)
    together = outputs(learner, episode.support, episode.query.x)[:2]
    fewer = outputs(learner, episode.support, episode.query.x[:2])
    assert (np.abs(together - fewer).max() < 1e-12) == (norm_policy == "inductive")


def test_what_adapt_keeps():
    """A support set that is read again for every query although nothing about it can change."""
    support = random_episode(KEY).support
    assert adapt(small(norm_policy="joint"), support).cache is None
    adapted = adapt(small(norm_policy="transductive"), support)
    assert int(adapted.cache.position) == 6


@pytest.mark.slow
def test_gradient_equals_central_differences():
    """A gradient cut by the cache, the choice of shots or frozen statistics."""
    episode = random_episode(KEY)
    learner = small(Affine(4, 4, KEY, norm=True), norm_policy="inductive", random_shot=True)
    assert_gradient_is_central_difference(lambda learner: meta_loss(learner, episode, KEY), learner)


@pytest.mark.slow
def test_a_random_shot_is_one_of_the_smaller_episodes_each_equally_likely():
    """Shots that are not uniform, an order that is not random, a class with another shot, or a left-over example
    that is seen: with two examples of two classes there are 8 sequences of one shot and 24 of two."""
    support = random_examples(KEY, [0, 1, 0, 1], way=2)
    query = random_examples(jax.random.fold_in(KEY, 1), [0, 1, 1], way=2)
    plain, random = (small(way=2, length=5, random_shot=r) for r in (False, True))

    def loss_of(sequence):
        rows = jnp.asarray(sequence)
        part = mk.Examples(support.x[rows], support.y[rows], way=2)
        return float(compiled_loss(plain, mk.Episode(part, query)))

    one_shot = [p for p in itertools.permutations(range(4), 2) if p[0] % 2 != p[1] % 2]
    known = np.array([loss_of(p) for p in [*one_shot, *itertools.permutations(range(4))]])
    expected = np.array([1 / 16] * 8 + [1 / 48] * 24)
    assert len(np.unique(known.round(10))) == 32

    count = 4000
    draw = eqx.filter_jit(eqx.filter_vmap(meta_loss, in_axes=(None, None, 0)))
    losses = np.asarray(draw(random, mk.Episode(support, query), jax.random.split(KEY, count)))
    distance = np.abs(losses[:, None] - known[None])
    assert distance.min(axis=1).max() < 1e-10
    seen = np.bincount(distance.argmin(axis=1), minlength=32)
    statistic = ((seen - count * expected) ** 2 / (count * expected)).sum()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], 31)
    assert low < statistic < high


def test_single_precision_under_64_bits():
    """A constant or a cache of another dtype, which strict promotion refuses."""
    single = lambda tree: jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, tree
    )
    learner, rest = eqx.partition(small(random_shot=True), eqx.is_array)
    learner = eqx.combine(single(learner), rest)
    assert compiled_loss(learner, single(random_episode(KEY)), KEY).dtype == jnp.float32


def test_the_published_network_on_images():
    """An embedding whose features do not fit the tokens of the published stack."""
    embed_key, key = jax.random.split(KEY)

    def shape(key):
        learner = few_shot(mk.nn.conv4_64(key=embed_key), 64, way=5, shot=1, key=key)
        support = mk.Examples(jnp.ones((5, 1, 28, 28)), jnp.arange(5), way=5)
        return predict(adapt(learner, support), jnp.ones((3, 1, 28, 28)))

    assert jax.eval_shape(shape, key).shape == (3, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(norm_policy="joined"), r"norm_policy='joined' is not known. Did you mean 'joint'"),
        (lambda: SNAIL(flat, small().trunk, mk.nn.Linear(5, 3, key=KEY)), r"head must take the trunk's 17 features"),
        (lambda: few_shot(flat, 4, way=3, shot=0, key=KEY), r"way and shot must be at least 1, got 3 and 0"),
        (lambda: few_shot_trunk(4, 1, key=KEY), r"at least 2 for a temporal convolution, got 1"),
        (lambda: adapt(small(), random_episode(KEY, shot=3).support), r"at most 6 examples.*larger shot"),
        (lambda: adapt(small(way=2), random_episode(KEY).support), r"support\.way must be 2.*got 3"),
        (lambda: adapt(small(), mk.Examples(jnp.ones((3, 4)), jnp.arange(3))), r"support\.way is missing"),
        (lambda: adapt(small(), mk.Examples(jnp.ones((3, 4)), jnp.ones(3))), r"integer class labels for SNAIL"),
        (
            lambda: meta_loss(small(features=5), random_episode(KEY)),
            r"embed must return 5 features.*got 4.*features=4",
        ),
        (lambda: meta_loss(small(random_shot=True), random_episode(KEY)), r"key is missing.*random_shot=True"),
        (
            lambda: predict(adapt(small(), random_episode(KEY).support), jnp.ones((2, 3))),
            r"support's shape \[4\], got \[3\]",
        ),
    ],
)
def test_refused(make, message):
    """A sequence longer than the network, other classes than it has a head for, and labels that are none."""
    with pytest.raises(ValueError, match=message):
        make()


def test_is_an_algorithm():
    """Catches a missing or renamed function."""
    assert isinstance(snail, mk.Algorithm)
