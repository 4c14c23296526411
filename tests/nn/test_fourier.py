"""Fourier features: their values, which number goes where, and bad input."""

import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


def test_they_are_the_input_and_its_waves():
    """Frequencies that start at 0, whose cosine says nothing; features of one coordinate under the name of another."""
    x = jnp.array([[0.3, -1.2], [2.0, 0.0], [-0.7, 5.0]])
    found = mk.nn.FourierFeatures(3, 6.0)(x)
    for row, point in zip(found, x, strict=True):
        waves = [wave(k * value) for wave in (np.sin, np.cos) for value in point for k in (2.0, 4.0, 6.0)]
        np.testing.assert_allclose(row, [*point, *waves], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1.0), ValueError, "num must be at least 1, got 0"),
        ((2.5, 1.0), TypeError, r"num must be a whole number, got 2\.5"),
        ((4, 0.0), ValueError, r"highest must be above 0.*got 0\.0"),
        ((4, float("inf")), ValueError, "highest must be above 0 and finite.*got inf"),
        ((4, "high"), TypeError, "highest must be a number, got 'high'"),
    ],
)
def test_bad_input(arguments, error, message):
    """No frequency, half a frequency, and one that is none."""
    with pytest.raises(error, match=message):
        mk.nn.FourierFeatures(*arguments)
