"""Hyperparameters, keys, tree helpers and the protocol."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk
from metakit._tree import all_finite, as_float_array, global_norm, tree_bytes


@pytest.mark.parametrize("value", [0.4, 1, np.float32(0.4), jnp.asarray(0.4)])
def test_numbers_become_strongly_typed_leaves(value):
    """Catches weak types, which trace a learner again for every new rate."""
    leaf = as_float_array(value)
    assert not leaf.weak_type
    assert jnp.issubdtype(leaf.dtype, jnp.floating)


def test_three_rates_are_one_trace():
    """Catches a rate that is part of the compiled program."""
    traces = 0

    @eqx.filter_jit
    def use(rate):
        nonlocal traces
        traces += 1
        return rate.value * 2

    for rate in (0.1, 0.2, 1):
        use(mk.fixed(rate))
    assert traces == 1


def test_trainable_leaves_fixed_hyperparameters_alone_and_nothing_else():
    """Catches a published inner rate that drifts during meta-training, and weights that never move."""
    learner = {
        "w": jnp.ones(3),
        "n": jnp.ones(3, int),
        "fixed": mk.fixed(0.1),
        "learned": mk.learned(0.1),
        "f": jnp.sin,
    }
    mask = mk.trainable(learner)
    assert (mask["w"], mask["n"], mask["f"]) == (True, False, False)
    assert (mask["fixed"].value, mask["learned"].value) == (False, True)


def test_a_fixed_hyperparameter_still_has_a_gradient():
    """Catches 'fixed' implemented with stop_gradient, which would make hypergradients silently zero."""
    gradient = eqx.filter_grad(lambda rate: rate.value**2)(mk.fixed(3.0))
    assert gradient.value == 6.0


@pytest.mark.parametrize("split", [1, 3, 7])
def test_task_keys_do_not_depend_on_the_split(split):
    """Catches keys made with jax.random.split, which change with the number of devices."""
    whole = jax.random.key_data(mk.random.task_keys(jax.random.key(3), 0, 8))
    parts = [mk.random.task_keys(jax.random.key(3), 0, split), mk.random.task_keys(jax.random.key(3), split, 8 - split)]
    np.testing.assert_array_equal(whole, jnp.concatenate([jax.random.key_data(part) for part in parts]))


def test_tree_helpers():
    """Catches norms that skip leaves and byte counts that count keys or static fields."""
    tree = {"a": jnp.full((2,), 3.0), "b": jnp.full((), 4.0), "c": jnp.arange(3), "d": "name"}
    np.testing.assert_allclose(global_norm(tree), np.sqrt(34.0))
    assert tree_bytes({"a": jnp.ones((2, 3), jnp.float32)}) == 24
    assert all_finite(tree)
    assert not all_finite({"a": jnp.array([1.0, jnp.inf])})


def test_modules_and_named_tuples_are_algorithms_and_other_things_are_not():
    """Catches a protocol that accepts anything, so that a misspelt function fails only at step one."""
    assert isinstance(mk.MetaLearner(len, len, len), mk.Algorithm)
    assert not isinstance(mk.losses, mk.Algorithm)
