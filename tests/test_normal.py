"""Normal predictions: densities and divergences against scipy, and their scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import metakit as mk


def some(seed, shape=(4, 2)):
    generator = np.random.default_rng(seed)
    return mk.Normal(jnp.asarray(generator.normal(size=shape)), jnp.asarray(generator.uniform(0.2, 2.0, shape)))


def test_density_is_scipys():
    """Catches a variance taken for a standard deviation, and a dropped constant."""
    p, y = some(0), np.random.default_rng(1).normal(size=(4, 2))
    np.testing.assert_allclose(p.log_density(jnp.asarray(y)), scipy.stats.norm.logpdf(y, p.mean, p.scale), rtol=1e-12)


def test_divergence_golden_values():
    """T21. Catches the other direction, or a divergence of a distribution from itself that is not 0."""
    one, standard = mk.Normal(jnp.ones(1), jnp.ones(1)), mk.Normal(jnp.zeros(1), jnp.ones(1))
    assert float(one.kl(standard)[0]) == 0.5
    np.testing.assert_allclose(some(0).kl(some(0)), 0.0, atol=1e-15)
    narrow = mk.Normal(jnp.zeros(1), 0.5 * jnp.ones(1))
    np.testing.assert_allclose(narrow.kl(standard), np.log(2) + 0.125 - 0.5, rtol=1e-12)


def test_divergence_is_the_mean_difference_of_densities():
    """Catches a wrong formula in any term: Gauss-Hermite quadrature is exact for log-densities that are quadratic."""
    p, q = some(2), some(3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    expected = sum(
        w * (p.log_density(p.mean + p.scale * t) - q.log_density(p.mean + p.scale * t))
        for t, w in zip(nodes, weights / weights.sum(), strict=True)
    )
    np.testing.assert_allclose(p.kl(q), expected, rtol=1e-12)


def test_draws_have_mean_and_scale():
    """Catches a scale used as a variance in the draw; 5 standard errors."""
    p = mk.Normal(jnp.full((20_000,), 2.0), jnp.full((20_000,), 0.3))
    draw = np.asarray(p.sample(jax.random.key(0)))
    assert abs(draw.mean() - 2.0) < 5 * 0.3 / np.sqrt(20_000)
    assert abs(draw.std() - 0.3) < 5 * 0.3 / np.sqrt(2 * 20_000)


def test_metrics_score_normal_predictions():
    """Catches a density averaged over the axes of one target, and an error of anything but the mean."""
    p, y = some(0), some(1).mean
    expected = scipy.stats.norm.logpdf(y, p.mean, p.scale).sum(1).mean()
    np.testing.assert_allclose(mk.metrics.log_density(p, y), expected, rtol=1e-12)
    assert mk.metrics.mean_squared_error(p, y) == mk.metrics.mean_squared_error(p.mean, y)
    stacked = jnp.stack([p.mean, jnp.log(p.scale)], axis=-1)
    np.testing.assert_allclose(expected, -2 * mk.losses.gaussian_nll(stacked, y, reduction="mean"), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mk.Normal(jnp.zeros((3, 1)), jnp.ones(3)), r"mean and scale must agree.*\[3, 1\].*\[3\]"),
        (lambda: mk.Normal(jnp.zeros(3), jnp.ones(3, jnp.float32)), "mean and scale must agree.*float64.*float32"),
        (lambda: some(0).log_density(jnp.zeros((4, 1))), r"must have the distribution's shape \[4, 2\], got \[4, 1\]"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(build, message):
    """Catches a table of every mean against every target, which gives a plausible number."""
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises((ValueError, TypeError)):
        mk.metrics.mean_squared_error(some(0), jnp.zeros((2, 4)))
