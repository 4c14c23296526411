"""Sinusoids and lines: what is drawn, and oracles against closed forms, golden values and simulation."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metakit import Examples
from metakit.tasks import (
    LinearRegression,
    Sinusoid,
    linear_bayes_excess,
    linear_one_step_excess,
    linear_one_step_rate,
    linear_posterior,
    sinusoid_nonadaptive,
    sinusoid_nonadaptive_mse,
    sinusoid_zero_mse,
)

TASKS = [Sinusoid(3, 4), LinearRegression(3, 4, noise=0.1)]
# Not the defaults: no symmetry hides a term that was forgotten.
SKEWED_SINUSOID = Sinusoid(2, 40, amplitude=(1.0, 2.0), phase=(0.3, 1.1), x=(-1.0, 2.5))
SKEWED_LINEAR = LinearRegression(
    3, 2, covariance=[[2.0, -0.6], [-0.6, 0.5]], mean=(0.7, -1.0), x=(-0.5, 2.0), noise=0.4
)


def assert_mean(samples, expected):
    """The expected value lies within five standard errors of the mean of independent samples."""
    samples = np.asarray(samples)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert abs(samples.mean() - expected) < 5 * error, (samples.mean(), expected, error)


def draw(tasks, count, seed=0):
    return eqx.filter_jit(eqx.filter_vmap(tasks))(jax.random.split(jax.random.key(seed), count))


def over_tasks(function, *batches):
    return jax.jit(jax.vmap(function))(*batches)


@pytest.mark.parametrize("tasks", TASKS, ids=lambda tasks: type(tasks).__name__)
def test_an_episode_has_separate_points_of_one_function(tasks, key):
    """Bug: query points that repeat the support, wrong shapes, or another function for every point."""
    sample = eqx.filter_jit(lambda key: tasks(key))
    episode = sample(key)
    assert episode.support.x.shape == episode.support.y.shape == (3, 1)
    assert episode.query.x.shape == episode.query.y.shape == (4, 1)
    assert episode.support.way is None
    x = np.concatenate([episode.support.x, episode.query.x])
    assert len(np.unique(x)) == 7
    assert episode.support.x.dtype == jnp.float64
    same = sample(key)
    np.testing.assert_array_equal(same.query.y, episode.query.y)
    assert not np.array_equal(sample(jax.random.key(1)).query.x, episode.query.x)


@pytest.mark.parametrize("tasks", TASKS, ids=lambda tasks: type(tasks).__name__)
def test_changing_a_number_compiles_nothing_again(tasks, key):
    """Bug: ranges kept as Python numbers, so that a sweep over them compiles for every value."""
    traces = []

    @eqx.filter_jit
    def sample(tasks, key):
        traces.append(None)
        return tasks(key)

    sample(tasks, key)
    changed = eqx.tree_at(lambda t: t.x, tasks, jnp.array([-2.0, 3.0]))
    sample(changed, key)
    assert len(traces) == 1


def test_a_distribution_can_be_built_and_differentiated_inside_a_transformation():
    """Bug: a host-side check that reads a traced number."""
    gradient = jax.grad(lambda high: sinusoid_zero_mse(Sinusoid(amplitude=jnp.stack([jnp.zeros(()), high]))))
    assert np.isclose(gradient(jnp.asarray(3.0)), 1.0)  # d/dh of h^2 / 6
    assert np.isfinite(jax.jit(lambda s: linear_one_step_excess(LinearRegression(noise=s)))(0.3))


def test_a_sampler_works_in_32_bits(key):
    """Bug: a 64-bit constant that creeps into a 32-bit program."""
    for tasks in TASKS:
        small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tasks)
        assert jax.eval_shape(small, key).query.y.dtype == jnp.float32


def test_sinusoids_lie_in_their_ranges():
    """Bug: degrees for radians, the 0.1 to 0.5 amplitude of some ports, or one amplitude for all tasks."""
    query = draw(Sinusoid(2, 40), 5000).query
    x, y = np.asarray(query.x)[..., 0], np.asarray(query.y)[..., 0]
    assert x.min() >= -5
    assert x.max() <= 5
    assert x.min() < -4.9
    # y = a sin x + b cos x exactly, with amplitude hypot(a, b) and phase atan2(-b, a).
    features = np.stack([np.sin(x), np.cos(x)], axis=-1)
    weights = (np.linalg.pinv(features) @ y[..., None])[..., 0]
    np.testing.assert_allclose(np.einsum("tnk,tk->tn", features, weights), y, atol=1e-10)
    amplitude, phase = np.hypot(*weights.T), np.arctan2(-weights[:, 1], weights[:, 0])
    assert amplitude.min() >= 0.1
    assert 4.9 < amplitude.max() <= 5.0
    assert phase.min() >= 0
    assert 3.1 < phase.max() <= math.pi
    assert_mean(amplitude, 2.55)
    assert_mean(phase, math.pi / 2)


def test_sinusoid_golden_values():
    """Bug: a wrong closed form; the values are the reference's, (5^3 - 0.1^3)/(3 4.9)/2 and so on."""
    tasks = Sinusoid()
    zero = (5**3 - 0.1**3) / (3 * 4.9) / 2
    np.testing.assert_allclose(sinusoid_zero_mse(tasks), zero, rtol=1e-12)
    mean = zero - (5.1 / math.pi) ** 2 * (0.5 + math.sin(10) / 20)
    np.testing.assert_allclose(sinusoid_nonadaptive_mse(tasks), mean, rtol=1e-12)
    assert round(zero, 4) == 4.2517
    assert round(mean, 4) == 3.0057
    x = jnp.linspace(-5, 5, 7)[:, None]
    np.testing.assert_allclose(sinusoid_nonadaptive(tasks, x), -5.1 / math.pi * jnp.cos(x), atol=1e-12)


@pytest.mark.parametrize("tasks", [Sinusoid(2, 40), SKEWED_SINUSOID], ids=["default", "skewed"])
def test_sinusoid_oracles_match_simulation(tasks):
    """Bug: a closed form that holds only for the default, symmetric ranges."""
    query = draw(tasks, 5000).query
    assert_mean((query.y**2).mean(axis=(1, 2)), sinusoid_zero_mse(tasks))
    predicted = over_tasks(lambda x: sinusoid_nonadaptive(tasks, x), query.x)
    squared = ((query.y - predicted) ** 2).mean(axis=(1, 2))
    assert_mean(squared, sinusoid_nonadaptive_mse(tasks))
    # The best non-adaptive curve: scaling it either way is worse.
    for factor in (0.9, 1.1):
        worse = ((query.y - factor * predicted) ** 2).mean(axis=(1, 2))
        assert (worse - squared).mean() > 0


def test_a_range_of_one_number_is_allowed():
    """Bug: 0/0 in the closed forms when amplitude and phase are known."""
    tasks = Sinusoid(2, 40, amplitude=(2.0, 2.0), phase=(0.5, 0.5))
    np.testing.assert_allclose(sinusoid_nonadaptive_mse(tasks), 0.0, atol=1e-12)
    query = draw(tasks, 5000).query
    np.testing.assert_allclose(sinusoid_nonadaptive(tasks, query.x[0]), query.y[0], atol=1e-12)


def test_linear_golden_values():
    """Bug: a wrong formula, or a loss with a half taken for one without; values of the reference (T3)."""
    tasks = LinearRegression(shot=5)
    assert round(float(linear_one_step_rate(tasks, half=True)), 6) == 0.981675
    assert round(float(linear_one_step_excess(tasks, half=True)), 6) == 0.121291
    # Without the half the gradient is twice as long and the error counted twice as large.
    np.testing.assert_allclose(2 * linear_one_step_rate(tasks), linear_one_step_rate(tasks, half=True))
    np.testing.assert_allclose(linear_one_step_excess(tasks), 2 * linear_one_step_excess(tasks, half=True))


@pytest.mark.parametrize(("variance", "golden"), [(0.01, 0.003545), (0.25, 0.063514)])
def test_linear_bayes_excess_golden_values(variance, golden):
    """Bug: a posterior with the noise's standard deviation where its variance belongs."""
    tasks = LinearRegression(shot=5, noise=math.sqrt(variance))
    excess = jax.jit(jax.vmap(lambda support: linear_bayes_excess(tasks, support, half=True)))
    # The golden value is rounded, and itself the mean of a simulation.
    assert_mean(excess(draw(tasks, 10_000).support), golden)


@pytest.mark.parametrize(
    "tasks",
    [SKEWED_LINEAR, LinearRegression(2, 2, std=(0.0, 1.5), noise=0.3), LinearRegression(1, 2)],
    ids=["skewed", "known slope", "one point without noise"],
)
def test_linear_oracles_match_simulation(tasks):
    """Bug: a term that vanishes for a standard prior and symmetric inputs; a singular prior."""
    best = linear_one_step_rate(tasks)

    def one_task(key):
        episode = tasks(key)
        support, x, y = episode.support, episode.query.x, episode.query.y

        def excess(w):
            return ((w[0] * x + w[1] - y) ** 2).mean() - tasks.noise**2

        def loss(w):
            return ((w[0] * support.x + w[1] - support.y) ** 2).mean()

        gradient = jax.grad(loss)(tasks.mean)
        posterior, bayes = linear_posterior(tasks, support), linear_bayes_excess(tasks, support)
        stepped = [excess(tasks.mean - rate * gradient) for rate in (best, 0.7 * best)]
        return posterior.covariance, bayes, excess(posterior.mean) - bayes, *stepped

    keys = jax.random.split(jax.random.key(0), 20_000)
    covariance, bayes, surplus, stepped, stepped_less = jax.jit(jax.vmap(one_task))(keys)
    assert bool(jnp.isfinite(covariance).all())
    assert_mean(surplus, 0.0)
    assert_mean(stepped, linear_one_step_excess(tasks))
    assert_mean(stepped_less, linear_one_step_excess(tasks, 0.7 * best))
    slope = jax.grad(lambda rate: linear_one_step_excess(tasks, rate))(best)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    assert linear_one_step_excess(tasks, 0.7 * best) > linear_one_step_excess(tasks) > bayes.mean()


def test_the_posterior_is_bayes_rule():
    """Bug: any slip in the rearranged formula; compared with the textbook's, which inverts the prior."""
    tasks = SKEWED_LINEAR
    support = jax.tree.map(lambda leaf: leaf[0], draw(tasks, 20_000).support)
    features = np.concatenate([support.x, np.ones_like(support.x)], axis=1)
    precision = np.linalg.inv(tasks.covariance) + features.T @ features / tasks.noise**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.linalg.solve(tasks.covariance, tasks.mean) + features.T @ support.y[:, 0] / tasks.noise**2)
    posterior = linear_posterior(tasks, support)
    np.testing.assert_allclose(posterior.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(posterior.covariance, covariance, rtol=1e-10)


def test_lines_follow_their_prior():
    """Bug: a covariance whose root is transposed, or noise missing from the query."""
    tasks = eqx.tree_at(lambda t: t.noise, SKEWED_LINEAR, jnp.zeros(()))
    episodes = draw(tasks, 20_000)
    w = np.asarray(over_tasks(lambda support: linear_posterior(tasks, support).mean, episodes.support))
    for i in range(2):
        assert_mean(w[:, i], tasks.mean[i])
        for j in range(2):
            assert_mean((w[:, i] - tasks.mean[i]) * (w[:, j] - tasks.mean[j]), tasks.covariance[i, j])
    noisy = draw(SKEWED_LINEAR, 20_000).query
    error = (w[:, :1] * noisy.x[..., 0] + w[:, 1:] - noisy.y[..., 0])[:, 0]
    assert_mean(error**2, 0.4**2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sinusoid(shot=0), "shot .* at least 1, got 0"),
        (lambda: Sinusoid(queries=0), "queries .* at least 1, got 0"),
        (lambda: Sinusoid(amplitude=(5.0, 0.1)), r"amplitude must be a range .*low <= high.*\[5.0, 0.1\]"),
        (lambda: Sinusoid(phase=(0.0, math.nan)), "phase must be a range .*nan"),
        (lambda: Sinusoid(x=(-math.inf, 5.0)), "x must be a range .*inf"),
        (lambda: Sinusoid(x=5.0), r"x must be a range .*got 5.0 of shape \[\]"),
        (lambda: LinearRegression(shot=0), "shot .* at least 1, got 0"),
        (lambda: LinearRegression(x=(1.0, -1.0)), r"x must be a range .*\[1.0, -1.0\]"),
        (lambda: LinearRegression(noise=-0.1), "noise must be one standard deviation, at least 0, got -0.1"),
        (lambda: LinearRegression(std=(1.0, -1.0)), "std must be two standard deviations"),
        (lambda: LinearRegression(mean=(1.0, 2.0, 3.0)), r"mean must be two .*shape \[3\]"),
        (lambda: LinearRegression(covariance=[[1.0, 2.0], [2.0, 1.0]]), "without negative eigenvalues"),
        (lambda: LinearRegression(covariance=[[1.0, 0.5], [0.0, 1.0]]), "covariance must be a symmetric"),
        (
            lambda: LinearRegression(std=(1.0, 1.0), covariance=[[1.0, 0.0], [0.0, 1.0]]),
            "give one of them, got both",
        ),
        (
            lambda: linear_posterior(TASKS[1], Examples(jnp.ones((4, 2)), jnp.ones((4, 1)))),
            r"support.x must be \[n, 1\], got \[4, 2\]",
        ),
        (
            lambda: linear_posterior(TASKS[1], Examples(jnp.ones((4, 1)), jnp.ones((4, 2)))),
            r"support.y must be \[n, 1\]",
        ),
    ],
)
def test_impossible_distributions_are_refused(build, message):
    """Bug: an empty range or a negative variance that surfaces as NaN in a training curve."""
    with pytest.raises(ValueError, match=message):
        build()
