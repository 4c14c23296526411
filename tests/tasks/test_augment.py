"""Turns and shifts, on images of single dots."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metakit.tasks import Episodes, ImagePool, Sequences, TurnAndShift

SIDES = np.array([41, 31])
CENTRE = SIDES // 2


def under_many_keys(move, x, count):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(eqx.filter_jit(lambda x, keys: jax.vmap(lambda key: move(x, key=key))(keys))(x, keys))


def moved_dots(move, dots, count=400):
    """Where each dot (down, right of the centre) of an image of its own goes, under many keys: `[count, dots, 2]`."""
    images = np.zeros((len(dots), 1, *SIDES), np.float32)
    for image, dot in zip(images, dots, strict=True):
        image[0, *(CENTRE + dot)] = 1
    found = under_many_keys(move, jnp.asarray(images), count)
    places = np.indices(SIDES) - CENTRE[:, None, None]
    total = found.sum((-2, -1))
    return (found * places).sum((-2, -1)) / np.where(total == 0, np.nan, total)


def test_a_shift_is_uniform_and_the_same_for_the_batch():
    """Catches images of one batch that go different ways, axes that move together or by each other's side, and a range
    of half its width."""
    found = moved_dots(TurnAndShift(turn=0.0, shift=0.1), [(0, 0), (5, -7)], 2000)
    np.testing.assert_array_equal(found[:, 0], found[:, 1] - [5, -7])
    for axis, furthest in enumerate([4.1, 3.1]):
        # To the nearest whole pixel, so the outermost are narrower than the others.
        most = round(furthest)
        values, seen = np.unique(found[:, 0, axis], return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        width = np.ones(2 * most + 1)
        width[[0, -1]] = furthest - most + 0.5
        assert stats.chisquare(seen, 2000 * width / (2 * furthest)).pvalue > 1e-4
    assert abs(np.corrcoef(found[:, 0].T)[0, 1]) < 4 / math.sqrt(2000)


def test_a_turn_is_one_about_the_centre():
    """Catches a shear or a reflection, and angles that are not uniform both ways."""
    far, across, middle = np.moveaxis(moved_dots(TurnAndShift(turn=0.5, shift=0.0), [(0, 13), (-13, 0), (0, 0)]), 1, 0)
    np.testing.assert_array_equal(middle, 0)
    # The nearest pixel may be half a diagonal off, and one dot may become two neighbours or none.
    known = np.isfinite(far[:, 0]) & np.isfinite(across[:, 0])
    assert known.mean() > 0.7
    np.testing.assert_allclose(np.linalg.norm(far[known], axis=1), 13, atol=1.0)
    # A quarter turn anticlockwise takes what is right of the centre above it, before the turn and after.
    np.testing.assert_allclose(np.stack([-far[known, 1], far[known, 0]], 1), across[known], atol=1.5)
    # A pixel's half diagonal is an angle of 0.055 here, which the test of uniformity must not see.
    angles = np.arctan2(-far[known, 0], far[known, 1])
    assert abs(np.mean(angles)) < 4 * 0.5 / math.sqrt(3 * len(angles))
    assert abs(np.std(angles) - 0.5 / math.sqrt(3)) < 0.03
    assert 0.4 < -np.min(angles) < 0.56
    assert 0.4 < np.max(angles) < 0.56


@pytest.mark.parametrize("sides", [(41, 31), (12, 12), (7, 10)])
def test_the_centre_is_that_of_the_image(sides):
    """Catches a centre half a pixel off: an image that a half turn leaves as it is stays so under any turn."""
    x = jax.random.uniform(jax.random.key(0), sides)
    turned = under_many_keys(TurnAndShift(turn=0.5, shift=0.0), x + x[::-1, ::-1], 20)
    np.testing.assert_array_equal(turned, turned[:, ::-1, ::-1])


def test_the_shift_comes_after_the_turn():
    """Catches a shift along turned axes, which leaves the box of the largest shifts."""
    found = moved_dots(TurnAndShift(turn=math.pi, shift=0.2), [(0, 0)])[:, 0]
    assert (np.nanmax(np.abs(found), axis=0) <= 0.2 * SIDES + math.sqrt(0.5)).all()


def test_what_comes_in_is_paper_and_values_stay():
    """Catches edges that are repeated or wrapped round on any side, blended pixels, and another dtype."""
    x = jax.random.randint(jax.random.key(1), (3, 2, 9, 7), 1, 256).astype(jnp.uint8)
    wide = jnp.pad(x, ((0, 0), (0, 0), (9, 9), (7, 7)))
    found = under_many_keys(TurnAndShift(0.3, 0.5), x, 20)
    # The same amounts in pixels, as shares of three times the side.
    expected = under_many_keys(TurnAndShift(0.3, 0.5 / 3), wide, 20)[..., 9:18, 7:14]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.uint8
    assert (found == 0).any()


def test_nothing_moves_by_nothing():
    """Catches a resampling that is off where there is nothing to do, for even sides and odd."""
    x = jax.random.uniform(jax.random.key(0), (2, 3, 8, 5))
    np.testing.assert_array_equal(TurnAndShift(0.0, 0.0)(x, key=jax.random.key(1)), x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"turn": -0.1}, ValueError, r"turn must lie in 0\.\.3\.142, got -0.1: it is in radians"),
        ({"turn": 45}, ValueError, r"turn must lie in .* got 45.*Degrees become radians by math.radians"),
        (
            {"shift": 10},
            ValueError,
            r"shift must lie in 0\.\.1, got 10.*Pixels become sides divided by the image's own",
        ),
        ({"shift": math.nan}, ValueError, r"shift must lie in .* got nan"),
        ({"shift": "a"}, TypeError, r"shift must be a number, got 'a'"),
        ({"turn": True}, TypeError, r"turn must be a number, got True"),
    ],
)
def test_amounts_out_of_range_are_refused(options, error, message):
    """Catches degrees where radians are meant, pixels where shares are, and what is no number."""
    with pytest.raises(error, match=message):
        TurnAndShift(**options)


@pytest.mark.parametrize("sampler", [lambda pool, **o: Episodes(pool, 2, 1, 1, **o), Sequences])
@pytest.mark.parametrize("name", ["augment", "augment_class"])
def test_the_class_in_place_of_an_augmentation_is_refused(sampler, name):
    """Catches parentheses left out, which fail in the middle of a trace."""
    pool = ImagePool(np.zeros((5, 10, 1, 4, 4), "uint8"))
    with pytest.raises(TypeError, match=rf"{name} must be a function, got the class TurnAndShift\. Call it first"):
        sampler(pool, **{name: TurnAndShift})
