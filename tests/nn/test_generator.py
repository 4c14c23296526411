"""The network that draws images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


def test_images_from_codes():
    """Catches a wrong shape or range, and images of one batch that depend on each other."""
    generator = mk.nn.ImageGenerator(5, 3, 28, width=4, key=jax.random.key(0))
    codes = 3 * jax.random.normal(jax.random.key(1), (6, 5))
    images = generator(codes)
    assert images.shape == (6, 3, 28, 28)
    assert 0 <= float(images.min()) < 0.4 < 0.6 < float(images.max()) <= 1
    np.testing.assert_allclose(generator(codes[2:3])[0], images[2], atol=1e-12)
    slopes = jax.jacrev(lambda code: generator(code[None])[0, 0, 14, 14])(codes[0])
    assert (jnp.abs(slopes) > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.ImageGenerator(5, 1, 30, key=jax.random.key(0)), r"image_size must be a positive multiple of 4"),
        (lambda: mk.nn.ImageGenerator(0, 1, 28, key=jax.random.key(0)), r"must be at least 1"),
        (lambda: mk.nn.ImageGenerator(5, 1, 8, key=jax.random.key(0))(jnp.ones((1, 4))), r"takes x of \[n, 5\]"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    """Catches an image of another size than was asked for."""
    with pytest.raises(ValueError, match=message):
        make()
