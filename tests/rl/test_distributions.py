"""Distributions over actions: against numpy and against their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import metakit as mk

KEY = jax.random.key(0)
LOGITS = jnp.array([[0.3, -1.0, 2.0], [0.0, 0.0, 5.0]])
OTHER = jnp.array([[1.0, 0.0, 0.0], [3.0, -2.0, 0.1]])


def test_categorical_by_hand():
    """Logits taken for probabilities, or a divergence the other way round."""
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (np.asarray(LOGITS), np.asarray(OTHER)))
    one, other = mk.rl.Categorical(LOGITS), mk.rl.Categorical(OTHER)
    np.testing.assert_allclose(one.log_prob(jnp.array([1, 2])), np.log([p[0, 1], p[1, 2]]), atol=1e-14)
    np.testing.assert_allclose(one.entropy(), -(p * np.log(p)).sum(1), atol=1e-14)
    np.testing.assert_allclose(one.divergence(other), (p * np.log(p / q)).sum(1), atol=1e-14)
    np.testing.assert_array_equal(one.mode(), [2, 2])


def test_categorical_with_impossible_actions_stays_finite():
    """0 log 0, in the value and in the gradient."""
    logits = jnp.array([0.0, -jnp.inf, 0.0])

    def value(shift):
        one = mk.rl.Categorical(logits + shift * jnp.arange(3.0))
        return one.entropy() + one.divergence(mk.rl.Categorical(jnp.zeros(3)))

    assert value(0.0) == pytest.approx(np.log(2) + np.log(3) - np.log(2))
    assert jnp.isfinite(jax.grad(value)(0.0))


def test_gaussian_by_scipy():
    """A variance taken for a standard deviation, or coordinates averaged instead of summed."""
    mean, log_std = jnp.array([[0.5, -1.0]]), jnp.array([[0.2, -0.7]])
    one = mk.rl.DiagonalGaussian(mean, log_std)
    action = jnp.array([[0.1, 0.4]])
    expected = scipy.stats.norm.logpdf(action, mean, np.exp(log_std)).sum(1)
    np.testing.assert_allclose(one.log_prob(action), expected, atol=1e-14)
    np.testing.assert_allclose(one.entropy(), scipy.stats.norm.entropy(mean, np.exp(log_std)).sum(1), atol=1e-14)
    # Golden: KL(N(1, 1) || N(0, 1)) = 1/2.
    unit = mk.rl.DiagonalGaussian(jnp.zeros(1), jnp.zeros(1))
    assert float(mk.rl.DiagonalGaussian(jnp.ones(1), jnp.zeros(1)).divergence(unit)) == 0.5


@pytest.mark.parametrize(
    "pair",
    [
        (mk.rl.Categorical(LOGITS[0]), mk.rl.Categorical(OTHER[0])),
        (
            mk.rl.DiagonalGaussian(jnp.array([0.5, -1.0]), jnp.array([0.2, -0.7])),
            mk.rl.DiagonalGaussian(jnp.array([0.0, 0.3]), jnp.array([0.0, 0.1])),
        ),
    ],
    ids=lambda pair: type(pair[0]).__name__,
)
def test_samples_agree_with_the_formulas(pair):
    """Samples of another distribution than `log_prob` is of: a divergence and an entropy estimated by sampling."""
    one, other = pair
    actions = jax.vmap(one.sample)(jax.random.split(KEY, 100_000))
    logs, others = jax.vmap(one.log_prob)(actions), jax.vmap(other.log_prob)(actions)
    for sampled, exact in ((-logs, one.entropy()), (logs - others, one.divergence(other))):
        error = sampled.std() / np.sqrt(len(sampled))
        assert abs(sampled.mean() - exact) < 4 * error
    np.testing.assert_allclose(one.divergence(one), 0, atol=1e-15)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_action_that_is_none_has_no_probability(wrong):
    """An index that wraps around, or is clipped to the last action."""
    assert jnp.isnan(mk.rl.Categorical(LOGITS[0]).log_prob(jnp.array(wrong)))


def test_sampling_has_no_gradient():
    """A reparameterised sample, through which a surrogate would be differentiated a second time."""

    def sample(mean):
        return mk.rl.DiagonalGaussian(mean, jnp.zeros(2)).sample(KEY).sum()

    np.testing.assert_array_equal(jax.grad(sample)(jnp.ones(2)), [0, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.rl.GaussianPolicy(mk.nn.Linear(3, 2, key=KEY), 0), "size must be an int of at least 1, got 0"),
        (lambda: mk.rl.GaussianPolicy(mk.nn.Linear(3, 2, key=KEY), 4)(jnp.ones((5, 3))), r"must give \[n, 4\]"),
        (lambda: mk.rl.CategoricalPolicy(lambda x: x[0])(jnp.ones((5, 3))), r"must map \[n, \*observation\]"),
        (lambda: mk.rl.CategoricalPolicy(mk.nn.Linear(3, 2, key=KEY))(jnp.ones(3)), "takes x of"),
    ],
)
def test_refused(make, message):
    """A network whose outputs broadcast against the weights of the noise, or that sees one observation as many."""
    with pytest.raises(ValueError, match=message):
        make()
