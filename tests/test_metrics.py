"""Metrics against hand-counted cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


def test_accuracy_counts_by_hand():
    """Catches an argmax over the wrong axis."""
    logits = jnp.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.0], [0.0, 0.1, 0.2], [1.0, 0.0, 0.0]])
    assert mk.metrics.accuracy(logits, jnp.array([1, 0, 2, 2])) == 0.75


def test_a_diverged_learner_scores_zero_not_chance():
    """Catches argmax over NaN, which returns class 0 and so looks like chance."""
    assert mk.metrics.accuracy(jnp.full((4, 2), jnp.nan), jnp.zeros(4, dtype=int)) == 0.0


def test_calibration_error_equals_a_loop_over_bins():
    """Catches wrong bin edges and an average over bins not weighted by their counts."""
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 4)) * 2, generator.integers(0, 4, 200)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    actual = mk.metrics.expected_calibration_error(jnp.asarray(logits), jnp.asarray(labels), num_bins=10)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_a_calibrated_predictor_has_small_error_and_an_overconfident_one_does_not():
    """Catches a calibration error that does not measure calibration: labels drawn from the predicted distribution."""
    logits = 1.5 * jax.random.normal(jax.random.key(0), (20_000, 5))
    labels = jax.random.categorical(jax.random.key(1), logits)
    # Each of 15 bins holds about 1,300 examples, so its accuracy has a standard error of about 0.014; the weighted mean
    # absolute gap of a calibrated predictor is then about 0.011 and stays below twice that.
    assert mk.metrics.expected_calibration_error(logits, labels) < 0.022
    assert mk.metrics.expected_calibration_error(4 * logits, labels) > 0.1


def test_negative_log_likelihood_of_a_uniform_guess_is_log_way():
    """Catches base-2 logarithms and sums over examples."""
    np.testing.assert_allclose(
        mk.metrics.negative_log_likelihood(jnp.zeros((7, 20)), jnp.arange(7)), np.log(20), rtol=1e-14
    )


def test_number_of_bins_must_be_positive():
    """Catches a division by zero bins that returns 0: perfect calibration."""
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        mk.metrics.expected_calibration_error(jnp.zeros((1, 2)), jnp.zeros(1, dtype=int), num_bins=0)
