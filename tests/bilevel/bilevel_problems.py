"""Bilevel problems, one for every kind of hyperparameter, shared by the tests of this folder."""

import equinox as eqx
import jax
import jax.numpy as jnp

import metakit as mk

KEYS = jax.random.split(jax.random.key(0), 8)
PARAMS = {"w1": 0.5 * jax.random.normal(KEYS[0], (3, 4)), "w2": 0.5 * jax.random.normal(KEYS[1], (4, 2)), "name": "net"}
DATA = {
    "x": jax.random.normal(KEYS[2], (10, 3)),
    "y": jax.random.normal(KEYS[3], (10, 2)),
    "valid_x": jax.random.normal(KEYS[4], (8, 3)),
    "valid_y": jax.random.normal(KEYS[5], (8, 2)),
    "noise": jax.random.key(7),
    "labels": jnp.arange(10),
}


def predict(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def squares(params):
    return jnp.sum(params["w1"] ** 2) + jnp.sum(params["w2"] ** 2)


def fit(params, data, weights=1.0, x=None):
    residual = predict(params, data["x"] if x is None else x) - data["y"]
    return jnp.mean(weights * jnp.sum(residual**2, axis=1))


def plain(params, hyper, data, step):
    return fit(params, data)


def validation(params, hyper, data):
    return jnp.mean((predict(params, data["valid_x"]) - data["valid_y"]) ** 2)


def augmented(params, hyper, data, step):
    noise = jax.random.normal(jax.random.fold_in(data["noise"], step), data["x"].shape)
    return fit(params, data, x=data["x"] + jnp.exp(hyper["strength"]) * noise)


def bilevel(inner=plain, solver=None, init=None, num_steps=8, outer=validation):
    return mk.Bilevel(inner, outer, solver or mk.inner.Momentum(0.05, 0.8), num_steps, init)


ARRAYS = {"w1": PARAMS["w1"], "w2": PARAMS["w2"]}

# name -> (problem, hyper, whether params are given)
KINDS = {
    "rates_and_momenta": (
        bilevel(solver=lambda hyper: hyper),
        mk.inner.PerLayerPerStepMomentum.like(ARRAYS, 0.05, 0.8, num_steps=8),
        True,
    ),
    "weight_decay": (
        bilevel(lambda params, hyper, data, step: fit(params, data) + jnp.exp(hyper["log_decay"]) * squares(params)),
        {"log_decay": jnp.asarray(-2.0)},
        True,
    ),
    "weights_of_examples": (
        bilevel(lambda params, hyper, data, step: fit(params, data, jax.nn.sigmoid(hyper))),
        jnp.linspace(-1.0, 1.0, 10),
        True,
    ),
    "augmentation_strength": (bilevel(augmented), {"strength": jnp.asarray(-1.0)}, True),
    "regulariser": (
        bilevel(
            # softplus, since what is only added to a loss (the last bias) changes no step.
            lambda params, hyper, data, step: (
                fit(params, data) + jnp.mean(jax.nn.softplus(hyper(jnp.abs(params["w1"]).reshape(-1, 1))))
            )
        ),
        mk.nn.MLP(1, 1, 3, 1, jnp.tanh, key=KEYS[6]),
        True,
    ),
    "initialisation": (bilevel(init=lambda hyper: {**hyper, "name": "net"}), ARRAYS, False),
    "preconditioner": (bilevel(solver=lambda hyper: hyper), mk.inner.MetaCurvature.like(ARRAYS, 0.05), True),
    "data": (
        bilevel(lambda params, hyper, data, step: fit(params, {**data, **hyper})),
        {"x": DATA["x"], "y": DATA["y"]},
        True,
    ),
}


def start(given):
    return PARAMS if given else None


def total(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))
