"""The truncated gradient term by term, and forward mode."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from inner_problems import network_problem

import metakit as mk

OBJECTIVE, PARAMS, ARGS = network_problem()
WEIGHTS = {name: PARAMS[name] for name in ("w1", "w2")}


def outcome(inputs, adjoint, num_steps):
    args, solver = inputs
    params = adjoint.solve(OBJECTIVE, solver, PARAMS, args, num_steps).params
    return jnp.sum(jnp.sin(params["w1"])) + jnp.sum(params["w2"] ** 2)


def test_truncation_keeps_the_last_terms_of_the_sum():
    """Catches steps counted from the wrong end, one too many or too few: the gradient must be that of an unroll of the
    last steps from the parameters and the velocity where they begin."""
    solver, last, num_steps = mk.inner.Momentum(0.02, 0.8), 3, 8
    gradient = eqx.filter_grad(outcome)((ARGS, solver), mk.inner.Truncated(last), num_steps)
    early = mk.inner.Unrolled().solve(OBJECTIVE, solver, WEIGHTS, ARGS, num_steps - last)

    def tail(inputs):
        args, solver = inputs
        params, velocity = early.params, early.state
        for step in range(num_steps - last, num_steps):
            grads = jax.grad(OBJECTIVE)(params, args, jnp.asarray(step))
            params, velocity = solver.update(grads, velocity, params, jnp.asarray(step))
        return jnp.sum(jnp.sin(params["w1"])) + jnp.sum(params["w2"] ** 2)

    for actual, expected in zip(*map(jax.tree.leaves, (gradient, eqx.filter_grad(tail)((ARGS, solver)))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_the_bias_of_truncation_shrinks_geometrically():
    """Catches terms that are lost for another reason: on a contracting loop the bias after h steps is about ρ^h, and
    for all steps it is gone."""

    def inner(w, target, step):
        del step
        return 0.5 * jnp.sum((w - target) ** 2)

    def slope(last):
        solve = mk.inner.Truncated(last).solve
        return float(jax.grad(lambda t: solve(inner, mk.inner.SGD(0.5), jnp.zeros(()), t, 20).params)(jnp.ones(())))

    for last in (1, 2, 5, 20, 30):
        np.testing.assert_allclose(slope(last), 1 - 0.5 ** min(last, 20), rtol=1e-14)


def test_truncation_has_no_gradient_of_the_initialisation_and_says_so():
    """Catches a learned initialisation that gets zeros in silence; with every step differentiated it has a gradient."""

    def adapted(w, last):
        solve = mk.inner.Truncated(last).solve
        return jnp.sum(solve(lambda w, a, s: 0.5 * jnp.sum(w**2), mk.inner.SGD(0.5), w, None, 4).params)

    with pytest.raises(
        ValueError, match=r"Truncated\(last=3\) gives no gradient with respect to params after num_steps"
    ):
        jax.grad(adapted)(jnp.ones(2), 3)
    np.testing.assert_array_equal(jax.grad(adapted)(jnp.ones(2), 4), jnp.full(2, 0.5**4))
    with pytest.raises(ValueError, match=r"last must be at least 1, got 0"):
        mk.inner.Truncated(0)


def test_forward_costs_one_derivative_for_each_number_that_is_differentiated():
    """Catches a Jacobian of everything: the compiled loop must not carry derivatives of the data, nor of parameters
    that are closed off."""

    def loss(rate, data):
        args = {**ARGS, **data}
        return outcome((args, mk.inner.SGD(rate)), mk.inner.Forward(), 5)

    data = {"x": ARGS["x"], "y": ARGS["y"]}
    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.asarray(0.05), data))
    assert "f64[1,3,4]" in text
    assert not any(f"f64[{n},3,4]" in text for n in range(2, 80))
    expected = jax.grad(lambda rate: outcome((ARGS, mk.inner.SGD(rate)), mk.inner.Unrolled(), 5))(jnp.asarray(0.05))
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(0.05), data), expected, rtol=1e-12)


@pytest.mark.slow
def test_forward_with_an_integer_in_the_solver_s_state():
    """Catches Adam's step count among the derivatives."""
    solver = mk.inner.Optax(optax.adam, learning_rate=0.05, eps_root=1e-4)
    gradients = [
        eqx.filter_grad(lambda solver, adjoint: outcome((ARGS, solver), adjoint, 4))(solver, adjoint)
        for adjoint in (mk.inner.Forward(), mk.inner.MixedMode())
    ]
    for actual, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9)
