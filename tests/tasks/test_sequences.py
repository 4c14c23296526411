"""The sampler of sequences, on pools whose pixels say which class and example they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metakit.tasks import ImagePool, Sequences
from metakit.tasks._episodes import draw


def _pool(classes=7, examples=6, counts=None):
    """Image `[[class + 1, 100 + example], [0, 0]]`."""
    images = np.zeros((classes, examples, 1, 2, 2), np.uint8)
    images[:, :, 0, 0, 0] = np.arange(classes)[:, None] + 1
    images[:, :, 0, 0, 1] = np.arange(examples) + 100
    return ImagePool(images, counts, [f"class {i}" for i in range(classes)])


def _whole(sequence):
    """Classes, examples and labels of a sequence (or many), the query last."""
    support, query = sequence.support, sequence.query
    x, y = np.concatenate([support.x, query.x], axis=-4), np.concatenate([support.y, query.y], axis=-1)
    pixels = np.rint(x * 255).astype(int)
    return pixels[..., 0, 0, 0] - 1, pixels[..., 0, 0, 1] - 100, y


@eqx.filter_jit
def _many(sampler, keys):
    return eqx.filter_vmap(lambda sampler, key: sampler(key), in_axes=(None, 0))(sampler, keys)


@pytest.mark.parametrize(("way", "presentations"), [(1, 2), (2, 1), (3, 4), (7, 6)])
def test_a_sequence_is_what_it_says(way, presentations):
    """An image presented twice, a label that does not follow its class, or classes presented unevenly."""
    sequences = _many(Sequences(_pool(), way, presentations), jax.random.split(jax.random.key(0), 20))
    total = way * presentations
    assert sequences.support.x.shape == (20, total - 1, 1, 2, 2)
    assert sequences.query.x.shape == (20, 1, 1, 2, 2)
    assert sequences.support.x.dtype == jnp.float32
    assert (sequences.support.y.dtype, sequences.support.way) == (jnp.int32, way)
    for classes, examples, labels in zip(*_whole(sequences), strict=True):
        assert np.bincount(labels, minlength=way).tolist() == [presentations] * way
        assert len(set(zip(classes, examples, strict=True))) == total
        assert len(set(zip(classes, labels, strict=True))) == len(set(classes)) == way


def test_every_order_of_labels_is_equally_likely():
    """Sorted or repeating labels, which a sequence learner would exploit; the query always of one class."""
    sequences = _many(Sequences(_pool(), 2, 2), jax.random.split(jax.random.key(1), 3000))
    _, seen = np.unique(_whole(sequences)[2] @ np.array([8, 4, 2, 1]), return_counts=True)
    assert len(seen) == 6
    statistic = ((seen - 500) ** 2 / 500).sum()
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], 5)
    assert low < statistic < high


def test_labels_are_drawn_afresh():
    """Labels that belong to the class and not to the sequence: the network would memorise them."""
    classes, _, labels = _whole(_many(Sequences(_pool(), 3, 2), jax.random.split(jax.random.key(2), 600)))
    seen = np.array([[np.sum((classes == c) & (labels == y)) for y in range(3)] for c in range(7)])
    expected = seen.sum() / seen.size
    # Two images of each class of a sequence move together, hence the factor.
    statistic = ((seen - expected) ** 2 / expected).sum() / 2
    assert statistic < stats.chi2.ppf(1 - 1e-4, 20)


def test_eager_jit_and_scan_draw_the_same():
    """A sampler that depends on how it is mapped, or keeps state."""
    sampler, keys = Sequences(_pool(), 3, 2, rotate="per_class"), jax.random.split(jax.random.key(3), 3)
    scanned = jax.lax.scan(lambda carry, key: (carry, sampler(key)), None, keys)[1]
    assert eqx.tree_equal(scanned, _many(sampler, keys))
    assert eqx.tree_equal(jax.tree.map(lambda leaf: leaf[1], scanned), sampler(keys[1]))


@pytest.mark.parametrize("partitionable", [True, False])
def test_tasks_stay_what_they_are(partitionable):
    """A new option that changes the sequences of everybody who does not use it: they come from the first keys of a
    split in five."""
    pool, key = _pool(), jax.random.key(7)
    with jax.threefry_partitionable(partitionable):
        sequence = Sequences(pool, 2, 2)(key)
        class_key, example_key, turn_key, order_key, _ = jax.random.split(key, 5)
        images = draw(pool, 2, 2, "none", (class_key, example_key, turn_key)).reshape(4, 1, 2, 2)
        order = jax.random.permutation(order_key, jnp.arange(4))
    found = jnp.concatenate([sequence.support.x, sequence.query.x])
    np.testing.assert_array_equal(np.rint(found * 255), np.asarray(images)[order])


def test_augmentation_sees_the_whole_sequence_and_no_key_is_used_twice():
    """Support and query augmented apart, or by one key with the draws."""
    seen = []

    def noise(x, *, key):
        seen.append(x.shape)
        return x + jax.random.uniform(key, x.shape, x.dtype)

    with jax.debug_key_reuse(True):
        eqx.filter_jit(Sequences(_pool(), 3, 2, rotate="per_class", augment=noise))(jax.random.key(0))
    assert seen == [(6, 1, 2, 2)]


def test_each_class_is_augmented_as_one_under_a_key_of_its_own():
    """Images of a class that move apart, classes that move together, or a key that draws something else too."""
    seen = []

    def brighter(x, *, key):
        seen.append(x.shape)
        return x + jax.random.uniform(key, (), x.dtype)

    compiled = eqx.filter_jit(lambda sampler, key: sampler(key))
    with jax.debug_key_reuse(True):
        plain, bright = (
            compiled(Sequences(_pool(), 3, 2, rotate="per_class", augment_class=how), jax.random.key(0))
            for how in (None, brighter)
        )
    assert seen == [(2, 1, 2, 2)]
    lift = np.asarray(bright.support.x - plain.support.x)
    by_class = [lift[np.asarray(plain.support.y) == label] for label in range(3)]
    for one in by_class:
        np.testing.assert_allclose(one, one.flat[0], atol=1e-6)
    assert len({round(float(one.flat[0]), 3) for one in by_class}) == 3
    last = int(plain.query.y[0])
    np.testing.assert_allclose(bright.query.x - plain.query.x, by_class[last].flat[0], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequences(_pool(), 8, 2), r"way must lie in 1\.\.7.*got 8"),
        (lambda: Sequences(_pool(), 2, 0), r"at least 2.*way=2 and presentations=0"),
        (lambda: Sequences(_pool(), 1, 1), r"at least 2.*way=1 and presentations=1"),
        (
            lambda: Sequences(_pool(counts=[6, 6, 3, 6, 6, 6, 6]), 2, 4),
            r"presentations must not exceed.*4 were asked for, but class 'class 2' has 3 \(1 of 7",
        ),
        (
            lambda: Sequences(ImagePool(np.zeros((3, 4, 1, 2, 3), "uint8")), 2, 2, rotate="per_class"),
            r"square images, got 2x3",
        ),
    ],
)
def test_refused(make, message):
    """A pool that cannot give what is asked for."""
    with pytest.raises(ValueError, match=message):
        make()
