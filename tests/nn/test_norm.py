"""Normalisation against numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

RNG = np.random.default_rng(0)
SHAPES = [(6, 4), (5, 4, 3), (3, 4, 5, 2)]


def as_array(*shape):
    return jnp.asarray(RNG.normal(2.0, 3.0, size=shape))


def normalised(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def per_channel(values, x):
    return np.asarray(values).reshape(1, -1, *[1] * (x.ndim - 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("use_scale", "use_bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_batch_statistics(shape, use_scale, use_bias):
    """Statistics over the wrong axes, an unbiased variance, or a scale where the paper has none."""
    norm = mk.nn.BatchStatNorm(4, eps=0.1, use_scale=use_scale, use_bias=use_bias)
    scale, bias = RNG.normal(size=4), RNG.normal(size=4)
    if use_scale:
        norm = eqx.tree_at(lambda n: n.scale, norm, jnp.asarray(scale))
    if use_bias:
        norm = eqx.tree_at(lambda n: n.bias, norm, jnp.asarray(bias))
    assert len(jax.tree.leaves(norm)) == use_scale + use_bias
    x = as_array(*shape)
    expected = normalised(np.asarray(x), (0, *range(2, len(shape))), 0.1)
    expected = expected * (per_channel(scale, x) if use_scale else 1) + (per_channel(bias, x) if use_bias else 0)
    np.testing.assert_allclose(norm(x), expected, atol=1e-12)
    np.testing.assert_allclose(norm.channels_last(jnp.moveaxis(x, 1, -1)), np.moveaxis(expected, 1, -1), atol=1e-12)


def test_variance_of_a_large_mean():
    """E[x²] - E[x]² in float32: the variance drowns in the square of the mean."""
    x = jnp.asarray(1e4 + RNG.normal(size=(256, 1)), jnp.float32)
    norm = mk.nn.BatchStatNorm(1, use_scale=False, use_bias=False)
    np.testing.assert_allclose(np.std(norm(x)), 1.0, atol=1e-2)


def test_a_constant_channel():
    """A not-a-number gradient where every pixel of a channel is the same, as in the corners of Omniglot."""
    norm = mk.nn.BatchStatNorm(2)
    x = jnp.ones((3, 2, 2, 2))
    assert jnp.all(norm(x) == 0)
    first = jax.grad(lambda x: jnp.sum(jnp.sin(norm(x) + x)))
    second = jax.grad(lambda x: jnp.sum(jnp.square(first(x))))
    for gradient in (first, second):
        assert jnp.all(jnp.isfinite(jax.jit(gradient)(x)))


def test_second_derivative_is_the_central_difference():
    """A statistic wrongly held constant while differentiating."""
    norm, x, direction = mk.nn.BatchStatNorm(2), as_array(4, 2), as_array(4, 2)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(norm(x)))))
    exact = jax.jvp(gradient, (x,), (direction,))[1]
    h = 1e-5
    difference = (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(exact, difference, atol=1e-8)


def test_given_statistics():
    """Statistics that are given and not used."""
    norm = mk.nn.BatchStatNorm(1, eps=0.0, statistics=mk.nn.Statistics(jnp.full((1,), 2.0), jnp.full((1,), 4.0)))
    np.testing.assert_allclose(norm(jnp.array([[2.0], [6.0]])), [[0.0], [2.0]])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(shape, groups):
    """Groups cut across the channels the wrong way, or one example's statistics reaching another."""
    norm = mk.nn.GroupNorm(groups, 4, eps=0.1)
    scale, bias = RNG.normal(size=4), RNG.normal(size=4)
    norm = eqx.tree_at(lambda n: (n.scale, n.bias), norm, (jnp.asarray(scale), jnp.asarray(bias)))
    x = as_array(*shape)
    cut = np.asarray(x).reshape(shape[0], groups, -1)
    expected = normalised(cut, (2,), 0.1).reshape(shape) * per_channel(scale, x) + per_channel(bias, x)
    np.testing.assert_allclose(norm(x), expected, atol=1e-12)
    np.testing.assert_allclose(norm(x[:1]), norm(x)[:1], atol=1e-12)


def test_per_step_parameters():
    """Every step reading the parameters of the first, a traced step failing, or one past the end being empty."""
    norm = mk.nn.PerStepNorm(3, 2, eps=0.1)
    norm = eqx.tree_at(lambda n: n.bias, norm, jnp.arange(6.0).reshape(3, 2))
    model = {"deep": [norm, mk.nn.BatchStatNorm(2)], "other": jnp.ones(2)}
    x = as_array(4, 2)
    plain = normalised(np.asarray(x), (0,), 0.1)
    np.testing.assert_allclose(norm(x), np.add(plain, [[0.0, 1.0]]), atol=1e-12)
    for step, bias in [(0, [0.0, 1.0]), (2, [4.0, 5.0]), (7, [4.0, 5.0])]:
        np.testing.assert_allclose(mk.nn.at_step(model, step)["deep"][0](x), np.add(plain, [bias]), atol=1e-12)
        traced = jax.jit(lambda i: mk.nn.at_step(model, i)["deep"][0](x))(jnp.int32(step))
        np.testing.assert_allclose(traced, np.add(plain, [bias]), atol=1e-12)
    assert jax.tree.leaves(mk.nn.at_step(model, 1)["other"])[0] is model["other"]


def test_per_step_gradients_reach_one_step_only():
    """A gradient spilling into the parameters of other steps."""
    model = mk.nn.PerStepNorm(3, 2)
    x = as_array(4, 2)
    gradient = eqx.filter_grad(lambda m: jnp.sum(jnp.exp(mk.nn.at_step(m, 1)(x))))(model)
    assert np.flatnonzero(np.abs(gradient.scale).sum(1)).tolist() == [1]
    assert np.flatnonzero(np.abs(gradient.bias).sum(1)).tolist() == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.BatchStatNorm(3)(as_array(2, 4)), "has 3 channels, got 4"),
        (lambda: mk.nn.GroupNorm(2, 4)(as_array(2, 6, 3)), "has 4 channels, got 6"),
        (lambda: mk.nn.GroupNorm(3, 4), "groups must divide channels=4, got 3"),
        (lambda: mk.nn.PerStepNorm(0, 4), "num_steps must be at least 1, got 0"),
        (lambda: mk.nn.PerStepNorm(2, 4)(as_array(2, 3)), "has 4 channels, got 3"),
    ],
)
def test_refused(make, message):
    """A wrong number of channels that broadcasts."""
    with pytest.raises(ValueError, match=message):
        make()
