"""Losses against numbers worked out by hand and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

CASES = {
    "cross_entropy": (mk.losses.cross_entropy, np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([0, 0, 1])),
    "squared_error": (mk.losses.squared_error, np.array([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]]), np.zeros((3, 2))),
    "gaussian_nll": (mk.losses.gaussian_nll, np.array([[[1.0, 0.5]], [[0.0, -1.0]], [[2.0, 0.0]]]), np.ones((3, 1))),
}


def by_hand(name, outputs, targets):
    if name == "cross_entropy":
        return np.log(np.exp(outputs).sum(1)) - outputs[np.arange(3), targets]
    if name == "squared_error":
        return ((outputs - targets) ** 2).mean(1)
    mean, scale = outputs[..., 0], np.exp(outputs[..., 1])
    return (0.5 * np.log(2 * np.pi) + np.log(scale) + (targets - mean) ** 2 / (2 * scale**2)).mean(1)


@pytest.mark.parametrize("name", CASES)
def test_each_reduction_equals_the_formula(name):
    """Catches a wrong sign or constant, and a `sum` that is secretly a mean (MAML's inner rate depends on it)."""
    loss, outputs, targets = CASES[name]
    expected = by_hand(name, outputs, targets)
    arguments = jnp.asarray(outputs), jnp.asarray(targets)
    np.testing.assert_allclose(loss(*arguments, reduction="none"), expected, rtol=1e-14)
    np.testing.assert_allclose(loss(*arguments, reduction="sum"), expected.sum(), rtol=1e-14)
    np.testing.assert_allclose(loss(*arguments, reduction="mean"), expected.mean(), rtol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_reduction_is_refused_by_name(name):
    """Catches a typo that falls through to some default reduction."""
    loss, outputs, targets = CASES[name]
    with pytest.raises(ValueError, match=r"reduction='men' is not known. Did you mean 'mean'"):
        loss(jnp.asarray(outputs), jnp.asarray(targets), reduction="men")


@pytest.mark.parametrize("label", [-1, 2, 7])
def test_a_label_outside_the_range_gives_nan_not_another_class(label):
    """Catches negative labels wrapping round to the last class, as plain indexing does."""
    assert jnp.isnan(mk.losses.cross_entropy(jnp.ones((1, 2)), jnp.array([label]), reduction="mean"))


def test_cross_entropy_and_its_gradient_are_finite_at_huge_logits():
    """Catches log(softmax) computed in two steps, which gives infinities."""
    value, gradient = jax.value_and_grad(lambda z: mk.losses.cross_entropy(z, jnp.array([1]), reduction="sum"))(
        jnp.array([[1e4, -1e4]])
    )
    assert jnp.isfinite(value)
    np.testing.assert_allclose(gradient, [[1.0, -1.0]], atol=1e-12)


def test_column_against_row_targets_is_an_error_not_a_table():
    """Catches [n, 1] - [n] broadcasting to [n, n], which trains and reports nonsense."""
    with pytest.raises(Exception, match="targets"):
        mk.losses.squared_error(jnp.ones((3, 1)), jnp.ones(3), reduction="mean")


def test_float_labels_are_refused():
    """Catches labels that went through a float pipeline and would be truncated."""
    with pytest.raises(Exception, match="targets"):
        mk.losses.cross_entropy(jnp.ones((3, 2)), jnp.ones(3), reduction="mean")
