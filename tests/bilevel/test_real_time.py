"""Forward-mode hypergradients while the loop runs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel_problems import ARRAYS, DATA, PARAMS, bilevel, fit, squares

import metakit as mk

HYPER = {"log_decay": jnp.asarray(-2.0), "rate": jnp.asarray(0.05), "count": jnp.arange(2)}


def decayed(params, hyper, data, step):
    return fit(params, data) + jnp.exp(hyper["log_decay"]) * squares(params)


SOLVERS = {
    "momentum": lambda hyper: mk.inner.Momentum(hyper["rate"], 0.8),
    "adam": lambda hyper: mk.inner.Optax(optax.adam, learning_rate=hyper["rate"], eps_root=1e-4),
}


@pytest.mark.parametrize("solver", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_without_moving_the_hyperparameters_it_is_the_hypergradient(solver):
    """Catches derivatives lost between calls, of the parameters or of the solver's state, and a wrong step index:
    three calls of 3, 1 and 4 steps against one hypergradient of 8."""
    problem = bilevel(decayed, solver=SOLVERS[solver])
    state = mk.start_real_time(problem, HYPER, PARAMS)
    losses = []
    for num_steps in (3, 1, 4):
        result, state = mk.real_time_hypergradient(problem, HYPER, state, DATA, num_steps=num_steps)
        losses.append(result.solution.losses)
    expected = mk.hypergradient(problem, HYPER, PARAMS, DATA)
    np.testing.assert_allclose(result.value, expected.value, rtol=1e-12)
    for name in ("log_decay", "rate"):
        np.testing.assert_allclose(result.gradient[name], expected.gradient[name], rtol=1e-9)
    np.testing.assert_allclose(jnp.concatenate(losses), expected.solution.losses, rtol=1e-12)
    assert int(state.step) == 8
    assert state.params["name"] == "net"


@pytest.mark.slow
def test_a_learned_initialisation_starts_with_its_derivative():
    """Catches Z_0 = 0 where the initialisation depends on the hyperparameters."""
    problem = bilevel(init=lambda hyper: {**hyper, "name": "net"}, num_steps=3)
    state = mk.start_real_time(problem, ARRAYS)
    result, _ = mk.real_time_hypergradient(problem, ARRAYS, state, DATA, num_steps=3)
    expected = mk.hypergradient(problem, ARRAYS, None, DATA)
    for name in ARRAYS:
        np.testing.assert_allclose(result.gradient[name], expected.gradient[name], rtol=1e-9)


@pytest.mark.slow
def test_it_tunes_a_rate_within_one_run():
    """Catches an update that pays no heed to the gradient: from a rate far too small, one run of 150 steps that moves
    the rate as it goes ends lower than the same run at the first rate."""
    problem = bilevel(solver=lambda hyper: mk.inner.SGD(jnp.exp(hyper)), num_steps=150, outer=lambda p, h, d: fit(p, d))
    hyper, state = jnp.asarray(jnp.log(1e-3)), None
    still = mk.hypergradient(problem, hyper, PARAMS, DATA).value
    state = mk.start_real_time(problem, hyper, PARAMS)
    step = eqx.filter_jit(lambda hyper, state: mk.real_time_hypergradient(problem, hyper, state, DATA, num_steps=5))
    for _ in range(30):
        (value, gradient, _), state = step(hyper, state)
        hyper = hyper - 0.2 * jnp.sign(gradient)
    assert float(value) < 0.7 * float(still)


@pytest.mark.slow
def test_rates_that_run_out_are_refused():
    """Catches rates that are clamped to the last one when calls together take more steps than there are rates."""
    problem = bilevel(solver=lambda hyper: hyper, num_steps=3)
    rates = mk.inner.PerLayerPerStepSGD.like(ARRAYS, 0.05, num_steps=3)
    state = mk.start_real_time(problem, rates, PARAMS)
    _, state = mk.real_time_hypergradient(problem, rates, state, DATA, num_steps=2)
    with pytest.raises(ValueError, match=r"2 more steps after 2 were asked, .* rates for 3 steps only"):
        mk.real_time_hypergradient(problem, rates, state, DATA, num_steps=2)
    result, _ = eqx.filter_jit(lambda s: mk.real_time_hypergradient(problem, rates, s, DATA, num_steps=2))(state)
    assert bool(jnp.isnan(result.value))
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(result.gradient))
    with pytest.raises(ValueError, match="num_steps must be at least 0"):
        mk.real_time_hypergradient(problem, rates, state, DATA, num_steps=-1)
