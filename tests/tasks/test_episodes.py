"""The episode sampler, on pools whose pixels say which class and example they are.

The cases of easy-few-shot-learning's and learn2learn's samplers are among them: number of images, ranges,
errors for too few classes or images, the same seed gives the same task.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metakit.tasks import Episodes, ImagePool
from metakit.tasks._episodes import draw


def _pool(classes: int = 7, examples: int = 6, counts=None) -> ImagePool:
    """Image `[[class + 1, 100 + example], [0, 0]]`: no two of its quarter turns agree."""
    images = np.zeros((classes, examples, 1, 2, 2), np.uint8)
    images[:, :, 0, 0, 0] = np.arange(classes)[:, None] + 1
    images[:, :, 0, 0, 1] = np.arange(examples) + 100
    if counts is not None:  # padding that a test would notice
        for row, count in zip(images, counts, strict=True):
            row[count:] = 255
    return ImagePool(images, counts, [f"class {i}" for i in range(classes)])


def _read(x) -> tuple[np.ndarray, np.ndarray]:
    """Class and example of each image."""
    pixels = np.rint(np.asarray(x) * 255).astype(int)
    return pixels[..., 0, 0, 0] - 1, pixels[..., 0, 0, 1] - 100


@eqx.filter_jit
def _many(sampler, keys):
    return eqx.filter_vmap(lambda sampler, key: sampler(key), in_axes=(None, 0))(sampler, keys)


def _chi_square_is_plausible(counts: np.ndarray) -> None:
    """Counts of equally likely outcomes: neither too uneven nor too even, at one in 10,000 each."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], counts.size - 1)
    assert low < statistic < high, f"chi-square {statistic:.1f} outside {low:.1f}..{high:.1f}"


@pytest.mark.parametrize(
    ("way", "shot", "queries", "shuffle"),
    [
        (1, 1, 1, False),
        (7, 2, 4, False),
        (3, 2, (1, 0, 4), True),
        (3, (1, 3, 2), 3, False),
        (2, (1, 5), (5, 1), True),
    ],
)
def test_an_episode_is_what_it_says(way, shot, queries, shuffle):
    """Bugs: a query image that is also support; labels that do not follow the class; wrong numbers."""
    shots = (shot,) * way if isinstance(shot, int) else shot
    wanted = (queries,) * way if isinstance(queries, int) else queries
    sampler = Episodes(_pool(), way, shot, queries, shuffle=shuffle)
    episodes = _many(sampler, jax.random.split(jax.random.key(0), 20))
    for i in range(20):
        episode = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
        drawn, class_of_label = set(), {}
        for part, numbers in ((episode.support, shots), (episode.query, wanted)):
            assert part.x.shape == (sum(numbers), 1, 2, 2)
            assert (part.x.dtype, part.y.dtype, part.way) == (jnp.float32, jnp.int32, way)
            assert np.bincount(part.y, minlength=way).tolist() == list(numbers)
            for label, name, example in zip(np.asarray(part.y), *_read(part.x), strict=True):
                assert class_of_label.setdefault(int(label), name) == name
                drawn.add((name, example))
        assert len(drawn) == sum(shots) + sum(wanted)
        assert len(set(class_of_label.values())) == way


def test_the_same_key_gives_the_same_episode_and_another_key_another():
    """Bug: hidden state (or none at all) in the sampler."""
    sampler = Episodes(_pool(), 3, 1, 2, rotate="per_class", shuffle=True)
    first, again, other = (sampler(jax.random.key(seed)) for seed in (0, 0, 1))
    assert eqx.tree_equal(first, again)
    assert not eqx.tree_equal(first, other)


@pytest.mark.parametrize("rotate", ["none", "per_class"])
def test_jit_vmap_and_scan_draw_the_eager_episodes(rotate):
    """Bug: a sampler that works outside the compiled step only, or depends on how it is mapped."""
    sampler = Episodes(_pool(counts=[6, 5, 4, 6, 6, 5, 6]), 3, 2, 2, rotate=rotate, shuffle=True)
    keys = jax.random.split(jax.random.key(3), 4)
    eager = [sampler(key) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *eager)
    scanned = jax.lax.scan(lambda carry, key: (carry, sampler(key)), None, keys)[1]
    jitted = [eqx.filter_jit(sampler)(key) for key in keys]
    assert eqx.tree_equal(_many(sampler, keys), stacked)
    assert eqx.tree_equal(scanned, stacked)
    assert all(eqx.tree_equal(a, b) for a, b in zip(jitted, eager, strict=True))


def test_other_images_and_keys_do_not_trace_again():
    """Bug: pixels or counts that became constants of the compiled program."""
    draw = eqx.filter_jit(eqx.debug.assert_max_traces(lambda sampler, key: sampler(key), max_traces=1))
    for seed, counts in enumerate(([6] * 7, [5] * 7)):
        draw(Episodes(_pool(counts=counts), 3, 1, 1), jax.random.key(seed))


def test_every_assignment_of_classes_to_labels_is_equally_likely():
    """Bug: labels not permuted afresh in each episode (memorisation), or some classes drawn more often."""
    sampler = Episodes(_pool(classes=5, examples=2), 3, 1, 1)
    names, _ = _read(_many(sampler, jax.random.split(jax.random.key(0), 6000)).support.x)
    code, seen = np.unique(names @ np.array([25, 5, 1]), return_counts=True)
    assert len(code) == 5 * 4 * 3
    _chi_square_is_plausible(seen)


def test_every_choice_of_examples_is_equally_likely_within_unequal_classes():
    """Bug: padding drawn as an image, or the last images of large classes never drawn."""
    counts = [3, 6, 4]
    sampler = Episodes(_pool(classes=3, counts=counts), 2, 1, 1)
    episodes = _many(sampler, jax.random.split(jax.random.key(1), 4000))
    (names, support), (same, query) = _read(episodes.support.x), _read(episodes.query.x)
    np.testing.assert_array_equal(names, same)
    for name, count in enumerate(counts):
        pairs = (support * 10 + query)[names == name]
        code, seen = np.unique(pairs, return_counts=True)
        assert len(code) == count * (count - 1)
        _chi_square_is_plausible(seen)


def test_class_and_example_are_drawn_independently():
    """Bug: the class drawn tells which of its examples is drawn."""
    sampler = Episodes(_pool(classes=4, examples=4), 1, 1, 1)
    names, examples = _read(_many(sampler, jax.random.split(jax.random.key(2), 4000)).support.x)
    _chi_square_is_plausible(np.bincount((names * 4 + examples).ravel(), minlength=16))


def test_no_key_is_used_twice():
    """Bug: two draws from one key, correlated in a way that no test of uniformity may notice."""

    def noise(x, *, key):
        return x + jax.random.uniform(key, x.shape, x.dtype)

    sampler = Episodes(_pool(), 3, 1, 2, rotate="per_class", shuffle=True, augment_class=noise, augment=noise)
    with jax.debug_key_reuse(True):
        eqx.filter_jit(sampler)(jax.random.key(0))


@pytest.mark.parametrize("partitionable", [True, False])
def test_tasks_stay_what_they_are(partitionable):
    """Bug: a new option that changes the tasks of everybody who does not use it, and with them every figure in the
    documentation: classes, examples and the order come from the first six keys of a split."""
    pool, key = _pool(), jax.random.key(7)
    with jax.threefry_partitionable(partitionable):
        episode = Episodes(pool, 3, 1, 1, shuffle=True)(key)
        class_key, example_key, turn_key, order_key, *_ = jax.random.split(key, 6)
        images = draw(pool, 3, 2, "none", (class_key, example_key, turn_key))
        order = jax.random.permutation(order_key, jnp.array([0, 2, 4]))
    np.testing.assert_array_equal(np.rint(episode.support.x * 255), np.asarray(images.reshape(6, 1, 2, 2))[order])
    np.testing.assert_array_equal(np.rint(episode.query.x * 255), images[:, 1])


def test_one_rotation_for_each_class_and_task():
    """Bugs: support and query of a class turned differently; turns not uniform, or shared by all classes."""
    pool = _pool(classes=3)
    sampler = Episodes(pool, 2, 1, 2, rotate="per_class")
    episodes = _many(sampler, jax.random.split(jax.random.key(4), 1000))
    turns = np.zeros((4, 4), int)
    for support, query in zip(np.asarray(episodes.support.x), np.asarray(episodes.query.x), strict=True):
        found = []
        for label in range(2):
            images = np.concatenate([support[label : label + 1], query[2 * label : 2 * label + 2]])
            straight = [np.rot90(images, -k, axes=(-2, -1)) for k in range(4)]
            fits = [k for k, x in enumerate(straight) if (x[:, 0, 1] == 0).all() and (x[:, 0, 0, 0] < 0.02).all()]
            assert len(fits) == 1, "one turn must explain all three images"
            found += fits
        turns[tuple(found)] += 1
    _chi_square_is_plausible(turns)


def test_support_order_is_sorted_unless_shuffled():
    """Bug: a sequence learner that finds every support set sorted; labels shuffled without images."""
    keys = jax.random.split(jax.random.key(5), 600)
    plain, mixed = (_many(Episodes(_pool(), 3, 1, 1, shuffle=s), keys) for s in (False, True))
    assert (np.asarray(plain.support.y) == np.arange(3)).all()
    orders, seen = np.unique(np.asarray(mixed.support.y) @ np.array([9, 3, 1]), return_counts=True)
    assert len(orders) == 6
    _chi_square_is_plausible(seen)
    assert eqx.tree_equal(plain.query, mixed.query)


def test_augmentation_sees_both_sets_under_different_keys():
    """Bug: the same noise on support and query, which a learner can use to match them."""

    def noise(x, *, key):
        return x + jax.random.uniform(key, x.shape, x.dtype)

    plain, noisy = (Episodes(_pool(), 2, 2, 2, augment=augment)(jax.random.key(0)) for augment in (None, noise))
    support, query = (np.asarray(getattr(noisy, s).x - getattr(plain, s).x) for s in ("support", "query"))
    assert support.std() > 0.1
    assert np.abs(support - query).max() > 0.1


def test_a_class_is_augmented_alike_in_support_and_query():
    """Bug: a class whose support image is moved one way and whose queries another, or all classes moved alike."""

    def brighter(x, *, key):
        return x + jax.random.uniform(key, (), x.dtype)

    plain, bright = (Episodes(_pool(), 3, 1, 2, augment_class=how)(jax.random.key(0)) for how in (None, brighter))
    support, query = (np.asarray(getattr(bright, s).x - getattr(plain, s).x) for s in ("support", "query"))
    np.testing.assert_allclose(query, np.repeat(support, 2, axis=0), atol=1e-6)
    assert len({round(float(x), 3) for x in support[:, 0, 0, 0]}) == 3


def test_pixels_reach_exactly_from_zero_to_one():
    """Bug: a division that rounds ink to 0.99999994, or images left in 0..255."""
    images = np.zeros((2, 2, 1, 2, 2), np.uint8)
    images[..., 0] = 255
    x = _many(Episodes(ImagePool(images), 2, 1, 1), jax.random.split(jax.random.key(0), 1)).support.x
    assert set(np.unique(x).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, 1, 1), {}, r"way must lie in 1\.\.7, the number of classes in the pool, got 8"),
        ((0, 1, 1), {}, r"way must lie in 1\.\.7.*got 0"),
        ((3, 0, 1), {}, "shot must be at least 1 for every class, got 0"),
        ((3, 1, 0), {}, "queries must be at least 1 for every class, got 0"),
        ((3, 1, -1), {}, "queries must be at least 1"),
        ((3, 1, (0, 0, 0)), {}, "at least one query image"),
        ((3, 1, (1, 2)), {}, r"tuple of way=3 integers, got 2: \(1, 2\)"),
        ((3, (1, 0, 1), 1), {}, r"shot must be at least 1 for every class, got \(1, 0, 1\)"),
        ((3, 2, 4), {}, "shot \\+ queries must not exceed.*: 6 were asked for, but class 'class 2' has 4"),
        ((3, 1, (1, 1, 4)), {}, "5 were asked for, but class 'class 2' has 4 \\(1 of 7 classes"),
        ((3, True, 1), {}, "shot must be an integer or a tuple of way=3 integers, got True"),
    ],
)
def test_impossible_episodes_are_refused_at_construction(arguments, options, message):
    """Bug: an index out of range that JAX clamps, so that an image is silently drawn twice."""
    with pytest.raises(ValueError, match=message):
        Episodes(_pool(counts=[6, 6, 4, 6, 6, 6, 6]), *arguments, **options)


def test_rotation_needs_square_images():
    """Bug: a transposed batch of 2x3 images that cannot be stacked, reported from inside a trace."""
    with pytest.raises(ValueError, match="rotate='per_class' needs square images, got 2x3"):
        Episodes(ImagePool(np.zeros((2, 2, 1, 2, 3), np.uint8)), 2, 1, 1, rotate="per_class")


@pytest.mark.parametrize(("way", "rotate"), [("5", "none"), (5, "twice")])
def test_a_wrong_type_is_a_type_error(way, rotate):
    """Bug: a misspelt option that is taken for its default."""
    with pytest.raises(TypeError):
        Episodes(_pool(), way, 1, 1, rotate=rotate)
