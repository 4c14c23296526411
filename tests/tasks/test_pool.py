"""The image pool: what it refuses, and that images, names and counts stay together."""

import jax.numpy as jnp
import numpy as np
import pytest

from metakit.tasks import ImagePool, fingerprint, mirrored, rotated, subset


def _images(classes: int = 3, examples: int = 4, side: tuple[int, int] = (5, 5)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (classes, examples, 2, *side), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "counts", "names", "message"),
    [
        (
            np.zeros((3, 4, 5, 5), np.uint8),
            None,
            None,
            r"classes, examples, channels, height, width.*\[3, 4, 5, 5\]",
        ),
        (np.zeros((0, 4, 1, 5, 5), np.uint8), None, None, r"none of them 0, got shape \[0, 4, 1, 5, 5\]"),
        (np.zeros((3, 0, 1, 5, 5), np.uint8), None, None, "none of them 0"),
        (np.zeros((3, 4, 1, 5, 5), np.float32), None, None, "images must be uint8 .* got float32"),
        (_images(), [4, 4], None, "counts must hold one integer for each of the 3 classes"),
        (_images(), [4.0, 4.0, 4.0], None, "counts must hold one integer"),
        (_images(), [4, 0, 4], None, r"counts must lie in 1\.\.4.*got 0 for class 1"),
        (_images(), [4, 4, 5], None, r"got 5 for class 2"),
        (_images(), None, ["a", "b"], "names must hold one name for each of the 3 classes, got 2"),
    ],
)
def test_a_malformed_pool_is_refused(images, counts, names, message):
    """Bug: a wrong shape, dtype or count that surfaces as wrong pixels inside a compiled step."""
    with pytest.raises(ValueError, match=message):
        ImagePool(images, counts, names)


def test_images_stay_bytes_on_the_device():
    """Bug: a pool kept as float, four or eight times as large."""
    pool = ImagePool(_images())
    assert pool.images.dtype == jnp.uint8
    assert pool.counts.tolist() == [4, 4, 4]
    assert pool.names == ("0", "1", "2")


def test_rotated_classes_are_quarter_turns_in_order():
    """Bug: turns in the wrong direction or order; names and counts that belong to other images."""
    images = _images()
    pool = rotated(ImagePool(images, [4, 2, 3], ["a", "b", "c"]))
    assert pool.names[4:8] == ("b/rot000", "b/rot090", "b/rot180", "b/rot270")
    assert pool.counts.tolist() == [4] * 4 + [2] * 4 + [3] * 4
    for character in range(3):
        for turns in range(4):
            expected = np.rot90(images[character], turns, axes=(-2, -1))
            np.testing.assert_array_equal(pool.images[4 * character + turns], expected)


def test_mirror_images_are_classes_beside_their_own():
    """Bug: mirrored along height or channels; names and counts that belong to other images."""
    images = _images(side=(5, 6))
    pool = mirrored(ImagePool(images, [4, 2, 3], ["a", "b", "c"]))
    assert pool.names == ("a", "a/mirrored", "b", "b/mirrored", "c", "c/mirrored")
    assert pool.counts.tolist() == [4, 4, 2, 2, 3, 3]
    np.testing.assert_array_equal(pool.images[::2], images)
    np.testing.assert_array_equal(pool.images[1::2], images[:, :, :, :, [5, 4, 3, 2, 1, 0]])


def test_mirrored_twice_is_refused():
    """Bug: every class twice, so that an episode can hold one class under two labels."""
    with pytest.raises(ValueError, match="pool is mirrored already: it holds 'a/mirrored'"):
        mirrored(mirrored(ImagePool(_images(classes=1), names=["a"])))


def test_turned_and_mirrored_a_class_has_all_eight_symmetries():
    """Bug: two of the classes alike, as they are when images are mirrored along the axis of a turn."""
    pool = mirrored(rotated(ImagePool(_images(classes=1))))
    assert len({np.asarray(images).tobytes() for images in pool.images}) == 8


def test_only_square_images_turn():
    """Bug: 28x20 images silently reshaped into nonsense."""
    with pytest.raises(ValueError, match="rotated needs square images, got 5x6"):
        rotated(ImagePool(_images(side=(5, 6))))


def test_subset_by_name_and_by_index():
    """Bug: names or counts left in the old order."""
    images = _images()
    pool = subset(ImagePool(images, [4, 2, 3], ["a", "b", "c"]), ["c", 0])
    np.testing.assert_array_equal(pool.images, images[[2, 0]])
    assert (pool.names, pool.counts.tolist()) == (("c", "a"), [3, 4])
    assert subset(ImagePool(images), np.array([-1])).names == ("2",)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "nobody"], "got 'nobody'"),
        ([3], "pool's 3 classes, got 3"),
        ([-4], "got -4"),
        ([], "at least one class"),
        ([1, "b"], "must not repeat"),
        ([2, -1], "must not repeat"),
    ],
)
def test_a_subset_that_does_not_exist_is_refused(classes, message):
    """Bug: JAX clamps an index out of range, which would give the last class without a word."""
    with pytest.raises(ValueError, match=message):
        subset(ImagePool(_images(), names=["a", "b", "c"]), classes)


def test_the_fingerprint_sees_pixels_names_and_counts_but_not_padding():
    """Bug: two different data sets recorded as one, or one as two because of what lies in the padding."""
    images = _images()
    reference = fingerprint(ImagePool(images, [4, 2, 3]))
    padding = images.copy()
    padding[1, 2:] = 0
    assert fingerprint(ImagePool(padding, [4, 2, 3])) == reference
    pixel = images.copy()
    pixel[1, 1, 0, 0, 0] ^= 1
    others = [
        ImagePool(pixel, [4, 2, 3]),
        ImagePool(images, [4, 3, 3]),
        ImagePool(images, [4, 2, 3], ["a", "b", "c"]),
        ImagePool(images[::-1], [4, 2, 3]),
        ImagePool(images.reshape(3, 4, 1, 10, 5), [4, 2, 3]),
    ]
    assert len({reference, *map(fingerprint, others)}) == 1 + len(others)
