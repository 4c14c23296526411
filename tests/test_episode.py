"""The data of a task: what is accepted, what is refused, and in which words."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


def examples(n=4, shape=(3,), way=None, dtype=float):
    y = jnp.arange(n) % way if way else jnp.ones((n, 1))
    return mk.Examples(jnp.ones((n, *shape), dtype), y, way)


def masked(mask):
    return mk.MaskedExamples(jnp.ones((4, 3)), jnp.ones((4, 1)), mask)


REFUSED = {
    "different n": (lambda: mk.Examples(jnp.ones((3, 2)), jnp.ones(4)), r"3 in x\[3, 2\] and 4 in y\[4\]"),
    "empty": (lambda: mk.Examples(jnp.ones((0, 2)), jnp.ones(0)), "holds no example"),
    "scalar": (lambda: mk.Examples(jnp.ones(()), jnp.ones(3)), "x must be an array with a leading axis"),
    "float labels": (lambda: mk.Examples(jnp.ones((2, 1)), jnp.ones(2), way=2), "y must hold integer labels 0..1"),
    "zero way": (lambda: mk.Examples(jnp.ones((2, 1)), jnp.ones(2, int), way=0), "way .* at least 1, got 0"),
    "feature shapes": (lambda: mk.Episode(examples(shape=(3,)), examples(shape=(4,))), r"query.x .* \[3\] and \[4\]"),
    "ways": (lambda: mk.Episode(examples(way=2), examples(way=4)), "way must be the same, got 2 and 4"),
    "mask of counts": (lambda: masked(jnp.array([1, 0, 1, 0])), r"mask must hold one Boolean .* 4 examples, got shape"),
    "short mask": (lambda: masked(jnp.ones(3, bool)), r"mask must hold one Boolean for each of the 4 .*shape \[3\]"),
    "masked labels": (lambda: mk.MaskedExamples(jnp.ones(2), jnp.ones(2), jnp.ones(2, bool), way=2), "integer labels"),
    "masked shapes": (
        lambda: mk.Episode(masked(jnp.ones(4, bool)), examples(shape=(2,))),
        r"query.x .* \[3\] and \[2\]",
    ),
    "dtypes": (lambda: mk.Episode(examples(dtype=jnp.float32), examples()), "share a dtype, got float32 and float64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_shapes_are_refused_with_the_argument_named(case):
    """Catches bad data that would fail far away, inside a traced function."""
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_float64_data_without_x64_is_refused():
    """Catches JAX halving the precision of numpy data without a word."""
    with jax.enable_x64(False), pytest.raises(ValueError, match="x is float64, but JAX keeps 32 bits"):
        mk.Examples(np.ones((2, 1)), np.ones((2, 1), np.float32))


BAD_VALUES = {
    "nan in support.x": (lambda e: e.support.x, jnp.nan, r"support.x must be finite, got nan at index \(1, 2\)"),
    "inf in query.x": (lambda e: e.query.x, jnp.inf, r"query.x must be finite, got inf"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_are_not_finite_are_found_and_located(case):
    """Catches one NaN pixel turning a whole meta-batch into NaN."""
    where, value, message = BAD_VALUES[case]
    episode = mk.Episode(examples(way=2), examples(way=2))
    mk.check_values(episode)
    with pytest.raises(ValueError, match=message):
        mk.check_values(eqx.tree_at(where, episode, replace_fn=lambda x: x.at[1, 2].set(value)))


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_outside_the_way_are_found(label):
    """Catches global class indices used as episode labels."""
    with pytest.raises(ValueError, match=rf"labels 0..4 \(way=5\), got {label} at index \(2,\)"):
        mk.check_values(mk.Examples(jnp.ones((3, 1)), jnp.array([0, 1, label]), way=5))


def test_masked_examples_keep_their_mask_in_a_batch():
    """Catches a mask that is static, or lost when a mapped module is rebuilt."""
    masks = jnp.array([[True, False, False, False], [True, True, True, False]])
    batch = eqx.filter_vmap(masked)(masks)
    np.testing.assert_array_equal(eqx.filter_vmap(lambda support: support.mask.sum())(batch), [1, 3])
    mk.check_values(eqx.filter_vmap(lambda support: mk.Episode(support, examples()))(batch))
    bad = eqx.tree_at(lambda b: b.x, batch, batch.x.at[1, 3, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"examples.x must be finite, got nan at index \(1, 3, 0\)"):
        mk.check_values(bad)


def test_a_batch_of_episodes_is_the_same_module():
    """Catches constructors that run again (and fail) when JAX rebuilds a mapped module."""
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), mk.Episode(examples(way=2), examples(way=2)))
    sums = eqx.filter_vmap(lambda episode: episode.support.x.sum())(batch)
    assert sums.shape == (2,)
    assert batch.support.way == 2


@pytest.mark.parametrize("labels", [[1, 2], np.array([1, 2]), (0, -1)], ids=["list", "numpy", "tuple"])
def test_labels_on_the_host_are_looked_at(labels):
    """Catches labels that count from 1, which every loss and learner turns into NaN without a word."""
    with pytest.raises(ValueError, match=r"y must hold labels 0\.\.1 \(way=2\), got .* Labels count from 0"):
        mk.Examples(jnp.ones((2, 1)), labels, way=2)


def test_numbers_of_python_take_the_default_precision():
    """Catches `[[1.0]]` refused as float64, which only NumPy's arrays declare themselves to be."""
    with jax.enable_x64(False):
        examples = mk.Examples([[1.0], [2.0]], [0, 1], way=2)
        assert examples.x.dtype == jnp.float32
        assert examples.y.dtype == jnp.int32
