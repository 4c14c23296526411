"""Rates, schedules and clipping of the outer Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk


def update_sizes(optimiser, steps, gradient=1.0):
    """Sizes of the updates under a constant gradient; Adam's are then the rate itself."""
    params = jnp.zeros(1)
    state, sizes = optimiser.init(params), []
    for _ in range(steps):
        with mk.train._state.others_promotion():
            updates, state = optimiser.update(jnp.full(1, gradient), state, params)
        sizes.append(-float(updates[0]))
    return np.array(sizes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1] * 5),
        ({"schedule": "halving", "every": 2}, [0.1, 0.1, 0.05, 0.05, 0.025]),
        ({"schedule": "cosine", "num_steps": 4}, [0.1, 0.0853553, 0.05, 0.0146447, 0.0]),
        ({"schedule": "cooldown", "num_steps": 10}, [*[0.1] * 9, 0.05, 0.0]),
        ({"schedule": "cooldown", "num_steps": 3}, [0.1, 0.1, 0.1, 0.0]),
    ],
)
def test_schedules(options, expected):
    """Catches a schedule that is off by a step, decays smoothly where it should halve, or ends above 0."""
    np.testing.assert_allclose(
        update_sizes(mk.train.adam(0.1, **options), len(expected)), expected, rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "gradient", "clipped"),
    [
        ({"clip_norm": 1.0}, [3.0, 4.0], [0.6, 0.8]),
        ({"clip_value": 3.5}, [3.0, 4.0], [3.0, 3.5]),
        ({"clip_value": 3.0, "clip_norm": 1.0}, [3.0, 4.0], [0.5**0.5, 0.5**0.5]),
        ({}, [3.0, 4.0], [3.0, 4.0]),
    ],
)
def test_clipping_happens_before_adam(options, gradient, clipped):
    """Catches clipping after Adam, where it does nothing, and the two clips in the other order."""
    optimiser = mk.train.adam(0.1, **options)
    params = jnp.zeros(2)
    with mk.train._state.others_promotion():
        _, state = optimiser.update(jnp.asarray(gradient), optimiser.init(params), params)
    means = next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,))
    np.testing.assert_allclose(means, 0.1 * np.array(clipped), rtol=1e-6)  # Adam's mu after one step: (1 - b1) g


def test_the_same_arguments_give_the_same_object():
    """Catches a new optimiser for each call: a jitted step compiles again for each."""
    assert mk.train.adam(1e-3, clip_norm=1.0) is mk.train.adam(1e-3, clip_norm=1.0)
    assert mk.train.adam(1e-3) is not mk.train.adam(1e-2)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.0,), {}, "rate must be above 0"),
        ((float("nan"),), {}, "rate must be above 0"),
        ((0.1,), {"clip_norm": -1.0}, "clip_norm must be above 0"),
        ((0.1,), {"schedule": "halfing"}, "Did you mean 'halving'"),
        ((0.1,), {"schedule": "cosine"}, "needs num_steps"),
        ((0.1,), {"schedule": "cooldown"}, "needs num_steps"),
        ((0.1,), {"schedule": "halving", "every": 0}, "needs every"),
        ((0.1,), {"every": 5}, "does not use every"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, message):
    """Catches a schedule that is quietly constant."""
    with pytest.raises(ValueError, match=message):
        mk.train.adam(*arguments, **options)
