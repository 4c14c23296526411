"""Small inner problems and finite differences, shared by the tests of this folder."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import metakit as mk

EXACT = {
    "unrolled": mk.inner.Unrolled(),
    "checkpointed": mk.inner.Checkpointed(),
    "mixed": mk.inner.MixedMode(),
    "mixed_checkpointed": mk.inner.MixedMode(checkpointed=True),
    "forward": mk.inner.Forward(),
}


def half_squared(params, args, step):
    """The peers' inner loss: half the square of one linear prediction."""
    del step
    return 0.5 * jnp.dot(args, params) ** 2


def network_problem():
    """A tanh network with weighted examples, a learned weight decay and a loss that depends on the step."""
    keys = jax.random.split(jax.random.key(1), 5)
    params = {
        "w1": jax.random.normal(keys[0], (3, 4)),
        "w2": jax.random.normal(keys[1], (4, 2)),
        "name": "a leaf that is no array",
        "count": jnp.arange(2),
    }
    args = {
        "x": jax.random.normal(keys[2], (6, 3)),
        "y": jax.random.normal(keys[3], (6, 2)),
        "weights": jax.random.uniform(keys[4], (6,)),
        "decay": jnp.full((), 0.1),
        "labels": jnp.arange(6),
        "activation": jnp.tanh,
        "key": jax.random.key(3),
    }

    def objective(params, args, step):
        residual = args["activation"](args["x"] @ params["w1"]) @ params["w2"] - args["y"]
        fit = jnp.sum(args["weights"][:, None] * residual**2)
        decay = args["decay"] * (1.0 + step.astype(fit.dtype))
        return fit + decay * (jnp.sum(params["w1"] ** 2) + jnp.sum(params["w2"] ** 2))

    return objective, params, args


def directional_difference(function, tree, direction, h=1e-5):
    """Fourth-order central difference. Rounding (1e-16 / h relative) stays below 2e-9 here; truncation (h⁴) grows
    fastest for a rate of 0.01 over ten momentum steps, 2.8e-6, 2.3e-8 and 2.8e-10 at h = 1e-4, 3e-5 and 1e-5."""

    def at(scale):
        return function(jax.tree.map(lambda leaf, d: leaf + scale * d, tree, direction))

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def assert_gradient_matches_differences(function, tree, gradient, rtol=1e-8):
    """Every floating-point leaf of `gradient` against differences along one random direction of that leaf."""
    arrays, static = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    gradients = jax.tree.leaves(eqx.filter(gradient, eqx.is_inexact_array))
    assert len(leaves) == len(gradients)
    value = jax.jit(lambda a: function(eqx.combine(a, static)))
    for i, (leaf, slope) in enumerate(zip(leaves, gradients, strict=True)):
        directions = [jnp.zeros_like(other) for other in leaves]
        directions[i] = jax.random.normal(jax.random.fold_in(jax.random.key(7), i), leaf.shape)
        expected = directional_difference(value, arrays, jax.tree.unflatten(structure, directions))
        actual = jnp.sum(slope * directions[i])
        scale = jnp.sqrt(jnp.sum(slope**2) * jnp.sum(directions[i] ** 2))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(float(scale), 1e-3), err_msg=f"leaf {i}")
