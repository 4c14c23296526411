"""Nearest neighbour on pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

nearest = mk.evaluate.baselines.nearest_neighbour


def test_it_is_an_algorithm():
    """Catches a baseline that evaluation does not accept."""
    assert isinstance(nearest, mk.Algorithm)


def test_golden_distances():
    """Catches the mean distance of a class (prototypes) instead of the smallest, or a root."""
    support = mk.Examples(jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]]), jnp.array([0, 0, 2]), way=3)
    logits = nearest.predict(nearest.adapt(None, support), jnp.array([[1.0, 0.0], [0.0, 3.0]]))
    np.testing.assert_array_equal(logits, [[-1.0, -np.inf, -10.0], [-9.0, -np.inf, 0.0]])
    task = mk.Episode(support, mk.Examples(jnp.array([[1.0, 0.0]]), jnp.array([0]), way=3))
    np.testing.assert_allclose(nearest.meta_loss(None, task), np.log1p(np.exp(-9.0)), rtol=1e-12)


def test_an_identical_image_is_at_distance_zero():
    """Catches |a|^2 - 2ab + |b|^2 in float32, which is not 0 for a = b and can swap close neighbours."""
    images = jax.random.uniform(jax.random.key(0), (6, 1, 28, 28), jnp.float32)
    support = mk.Examples(images, jnp.arange(6), way=6)
    logits = nearest.predict(nearest.adapt(None, support), images)
    np.testing.assert_array_equal(jnp.diagonal(logits), np.zeros(6))
    assert mk.metrics.accuracy(logits, jnp.arange(6)) == 1.0


def test_uint8_images_do_not_wrap_around():
    """Catches 3 - 250 = 9 in unsigned arithmetic."""
    support = mk.Examples(jnp.array([[250], [10]], jnp.uint8), jnp.array([0, 1]), way=2)
    logits = nearest.predict(nearest.adapt(None, support), jnp.array([[3]], jnp.uint8))
    np.testing.assert_array_equal(logits, [[-(247.0**2), -49.0]])


def test_regression_is_refused():
    """Catches real targets taken for labels."""
    support = mk.Examples(jnp.ones((2, 1)), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="way is None"):
        nearest.adapt(None, support)
