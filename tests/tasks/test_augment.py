"""Turns and shifts, on images of single dots."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metakit.tasks import TurnAndShift

SIDE = 41
CENTRE = 20


def moved_dots(move, dots, count=400):
    """Where each dot (down, right of the centre) of an image of its own goes, under many keys: `[count, dots, 2]`."""
    images = np.zeros((len(dots), 1, SIDE, SIDE), np.float32)
    for image, (down, right) in zip(images, dots, strict=True):
        image[0, CENTRE + down, CENTRE + right] = 1
    keys = jax.random.split(jax.random.key(0), count)
    many = eqx.filter_jit(lambda move, x, keys: jax.vmap(lambda key: move(x, key=key))(keys))
    found = np.asarray(many(move, jnp.asarray(images), keys))[:, :, 0]
    places = np.indices((SIDE, SIDE)) - CENTRE
    total = found.sum((-2, -1))[..., None]
    return (found[:, :, None] * places).sum((-2, -1)) / np.where(total == 0, np.nan, total)


def test_a_shift_is_uniform_and_the_same_for_the_batch():
    """Catches images of one batch that go different ways, axes that move together, and a range of half its width."""
    found = moved_dots(TurnAndShift(turn=0.0, shift=0.1), [(0, 0), (5, -7)], 2000)
    np.testing.assert_array_equal(found[:, 0], found[:, 1] - [5, -7])
    for axis in range(2):
        # 4.1 pixels either way, to the nearest whole one: -4..4, of which the outermost are 0.6 wide and not 1.
        values, seen = np.unique(found[:, 0, axis], return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        share = np.array([0.6, *[1.0] * 7, 0.6]) / 8.2
        assert stats.chisquare(seen, 2000 * share).pvalue > 1e-4
    assert abs(np.corrcoef(found[:, 0].T)[0, 1]) < 4 / math.sqrt(2000)


def test_a_turn_is_one_about_the_centre():
    """Catches a shear or a reflection, a centre half a pixel off, and angles that are not uniform both ways."""
    far, across, middle = np.moveaxis(moved_dots(TurnAndShift(turn=0.5, shift=0.0), [(0, 18), (-18, 0), (0, 0)]), 1, 0)
    np.testing.assert_array_equal(middle, 0)
    # The nearest pixel may be half a diagonal off, and one dot may become two neighbours or none.
    known = np.isfinite(far[:, 0]) & np.isfinite(across[:, 0])
    assert known.mean() > 0.7
    np.testing.assert_allclose(np.linalg.norm(far[known], axis=1), 18, atol=1.0)
    # A quarter turn anticlockwise takes what is right of the centre above it, before the turn and after.
    np.testing.assert_allclose(np.stack([-far[known, 1], far[known, 0]], 1), across[known], atol=1.5)
    angles = np.arctan2(-far[known, 0], far[known, 1])
    assert stats.kstest(angles, stats.uniform(-0.5, 1.0).cdf).pvalue > 1e-4


def test_what_comes_in_is_paper_and_values_stay():
    """Catches edges that are repeated or wrapped round, blended pixels, and another dtype."""
    x = jnp.full((3, 2, 9, 7), 255, jnp.uint8)
    found = jax.jit(lambda x, key: TurnAndShift(turn=0.3, shift=0.5)(x, key=key))(x, jax.random.key(1))
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert set(np.unique(found).tolist()) == {0, 255}


def test_nothing_moves_by_nothing():
    """Catches a resampling that is off where there is nothing to do, for even sides and odd."""
    x = jax.random.uniform(jax.random.key(0), (2, 3, 8, 5))
    np.testing.assert_array_equal(TurnAndShift(0.0, 0.0)(x, key=jax.random.key(1)), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turn": -0.1}, r"turn must lie in 0\.\.3\.142 radians, got -0.1"),
        ({"turn": 45}, r"turn must lie in .* got 45"),
        ({"shift": 10}, r"shift must lie in 0\.\.1 sides, got 10"),
        ({"shift": math.nan}, r"shift must lie in .* got nan"),
    ],
)
def test_amounts_out_of_range_are_refused(options, message):
    """Catches degrees where radians are meant, and pixels where shares are."""
    with pytest.raises(ValueError, match=message):
        TurnAndShift(**options)
