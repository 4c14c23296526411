"""A learner is a PyTree of arrays: JAX's own transformations take it as it is, and its samplers."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import ROWS
from test_contract import STAND_INS, make_learner, over, subject

import metakit as mk

each = over(ROWS)


def not_arrays(tree):
    return [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(tree) if not eqx.is_array(leaf)]


@each
def test_no_leaf_is_anything_but_an_array(row):
    """Catches a function, a flag or a string that is a leaf: `jax.jit` refuses the learner that holds it."""
    learner = make_learner(row)
    assert not_arrays(learner) == []
    assert not_arrays(mk.train.init(learner, optax.adam(1e-3), key=jax.random.key(0))) == []


TRANSFORMS = {
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "jit": jax.jit,
    "vmap": functools.partial(jax.vmap, in_axes=(None, 0, 0)),
    "pmap": functools.partial(jax.pmap, in_axes=(None, 0, 0)),
    "jacfwd": jax.jacfwd,
    "checkpoint": lambda function: jax.grad(jax.checkpoint(function)),
}


def transformed(row, name):
    """The transformed meta-loss, and what it is called with."""
    tasks, keys = subject(row).tasks(2), subject(row).keys(2)
    mapped = name in ("vmap", "pmap")
    task, key = (tasks, keys) if mapped else take((tasks, keys), 0)
    return TRANSFORMS[name](row.algorithm.meta_loss), (make_learner(row), task, key)


# By default every learner is traced, which is where a leaf that is no array is refused; numbers are compared on three.
each_transform = pytest.mark.parametrize("name", TRANSFORMS)
in_numbers = over(ROWS, lambda row: row.name in STAND_INS)


def forward_is_refused(row, name):
    """Implicit differentiation is a rule for reverse mode alone."""
    return row.name == "imaml" and name == "jacfwd"


@each
@each_transform
def test_a_bare_transform_takes_the_learner(row, name):
    """Catches a learner for which a transformation of JAX's own raises."""
    function, arguments = transformed(row, name)
    if forward_is_refused(row, name):
        with pytest.raises(TypeError, match="forward-mode"):
            jax.eval_shape(function, *arguments)
        return
    jax.eval_shape(function, *arguments)


@in_numbers
@each_transform
def test_a_bare_transform_gives_what_the_filtered_one_gives(row, name):
    """Catches a number that only one of the two sees."""
    if forward_is_refused(row, name):
        return
    function, arguments = transformed(row, name)
    actual = (function if name == "pmap" else jax.jit(function))(*arguments)
    loss, gradient = one_by_one(row.name)
    expected = {"jit": loss[0], "vmap": loss, "pmap": loss, "value_and_grad": (loss[0], gradient)}.get(name, gradient)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@functools.cache
def one_by_one(name):
    """By the filtered transformations: the losses of two tasks, and the gradient of the first."""
    row = next(row for row in ROWS if row.name == name)
    tasks, keys = subject(row).tasks(2), subject(row).keys(2)
    run = eqx.filter_jit(eqx.filter_value_and_grad(row.algorithm.meta_loss))
    (first, gradient), (second, _) = (run(make_learner(row), *take((tasks, keys), i)) for i in range(2))
    return jnp.stack([first, second]), gradient


def take(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@each
def test_what_adapt_returns_leaves_a_compiled_function(row):
    """Catches a function that an adapted learner holds as a leaf: bare `jax.jit(adapt)` could not return it."""
    learner, task, key = make_learner(row), subject(row).task(), subject(row).call_key()
    support, _ = jax.eval_shape(subject(row).support_and_x, learner, task, key)
    assert jax.tree.leaves(jax.eval_shape(row.algorithm.adapt, learner, support, key))


def pool():
    return mk.tasks.ImagePool(np.zeros((6, 4, 1, 8, 8), "uint8"))


def turned(x, *, key):
    del key
    return jnp.rot90(x, axes=(2, 3))


@pytest.mark.parametrize(
    "sampler",
    [
        mk.tasks.Sinusoid(),
        mk.tasks.LinearRegression(),
        mk.tasks.GaussianProcessCurves(),
        mk.tasks.Bandits(2),
        mk.tasks.Navigations(),
        mk.tasks.GridWorlds(),
        mk.tasks.TabularMDPs(),
        lambda: mk.tasks.Episodes(pool(), 2, 1, 1, augment=turned, augment_class=turned),
        lambda: mk.tasks.Sequences(pool(), 2, 2, augment=turned, augment_class=turned),
    ],
    ids=lambda sampler: "augmented" if inspect.isfunction(sampler) else type(sampler).__name__,
)
def test_samplers_are_arguments_of_compiled_functions(sampler):
    """Catches a sampler whose options or augmentations are leaves: it could only be closed over, images and all."""
    sampler = sampler() if inspect.isfunction(sampler) else sampler
    assert not_arrays(sampler) == []
    key = jax.random.key(0)
    drawn = jax.jit(lambda sampler, key: sampler(key))(sampler, key)
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(sampler(key)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
