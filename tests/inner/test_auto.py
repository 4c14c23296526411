"""Which adjoint is chosen, and what is said about it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

MOMENTUM = mk.inner.Momentum(0.01, 0.9)
# With the room that a decay of 0.9 needs, as the nearest fraction of 2^16.
REVERSIBLE = mk.inner.Reversible(round(0.9 * 2**16) / 2**16)
WIDE = (jnp.ones((64, 32)), jnp.ones((64, 1)))


def objective(params, args, step):
    x, y = args
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def params_of(width):
    return {"a": 0.1 * jnp.ones((32, width)), "b": 0.1 * jnp.ones((width, 1))}


def choose(num_steps, solver=MOMENTUM, width=16, **options):
    return mk.inner.choose_adjoint(objective, solver, params_of(width), WIDE, num_steps, **options)


@pytest.mark.parametrize(
    ("num_steps", "options", "expected", "reason"),
    [
        (5, {}, mk.inner.Unrolled(), r"5 steps of Momentum on 528 parameters: Unrolled, .* few steps"),
        (6, {}, mk.inner.MixedMode(), r"state of every step"),
        (5, {"memory_limit": 150_000}, mk.inner.MixedMode(), r"MiB of 0\.143 MiB"),
        (1000, {"memory_limit": 1 << 20}, mk.inner.MixedMode(checkpointed=True), r"states of 2 sqrt\(K\) steps"),
        (
            10_000,
            {"memory_limit": 1_200_000},
            REVERSIBLE,
            r"bits a step, and moves decays",
        ),
        (
            10_000,
            {"memory_limit": 500_000, "solver": mk.inner.SGD(0.1), "num_hyperparameters": 2},
            mk.inner.Forward(),
            r"carries 2 derivatives along",
        ),
        (10, {"memory_limit": 1000}, REVERSIBLE, r"the smallest.*does not fit"),
    ],
)
def test_the_choice_and_its_reason(num_steps, options, expected, reason):
    """Catches a chooser that ignores steps, memory, the solver or the number of hyperparameters, or that hides why."""
    choice = choose(num_steps, **options)
    assert choice.adjoint == expected
    assert re.search(reason, choice.reason), choice.reason


def test_solvers_that_cannot_be_undone_are_never_given_to_reversible():
    """Catches an automatic choice that then raises: Nesterov, no momentum or too little, one that is traced and so may
    be anything, and 32-bit mode."""
    refused = [mk.inner.Momentum(0.1, decay) for decay in (0.0, 0.1, 0.49)]
    for solver in (*refused, mk.inner.Momentum(0.1, 0.9, nesterov=True), mk.inner.SGD(0.1)):
        assert not isinstance(choose(10_000, solver, memory_limit=1_200_000).adjoint, mk.inner.Reversible)
    chosen = []
    learn = lambda decay: chosen.append(choose(10_000, mk.inner.Momentum(0.1, decay), memory_limit=1_200_000).adjoint)
    jax.eval_shape(learn, jnp.asarray(0.9))
    learn(jnp.asarray(0.9))
    assert [isinstance(adjoint, mk.inner.Reversible) for adjoint in chosen] == [False, True]
    with jax.enable_x64(False):
        single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params_of(16), WIDE))
        solver = mk.inner.Momentum(0.1, 0.9)
        choice = mk.inner.choose_adjoint(objective, solver, *single, 10_000, memory_limit=600_000)
    assert not isinstance(choice.adjoint, mk.inner.Reversible)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("num_steps", "memory_limit", "expected"),
    [
        (32, 1 << 30, mk.inner.MixedMode()),
        (128, 1 << 30, mk.inner.MixedMode()),
        (128, 1 << 20, mk.inner.MixedMode(checkpointed=True)),
        (128, 1 << 19, REVERSIBLE),
        (2000, 1 << 20, REVERSIBLE),
    ],
)
def test_the_estimates_bound_the_compiled_memory(num_steps, memory_limit, expected):
    """Catches an estimate in the wrong unit, one that misses what grows with the steps, and room for decays that the
    solver has not: what XLA allocates is at most the estimate, and no less than two fifths of it."""
    params, solver = params_of(64), mk.inner.Momentum(0.01, 0.9)

    def temporary(adjoint):
        def outer(params, args):
            return objective(adjoint.solve(objective, solver, params, args, num_steps).params, args, None)

        return jax.jit(jax.grad(outer)).lower(params, WIDE).compile().memory_analysis().temp_size_in_bytes

    choice = choose(num_steps, width=64, memory_limit=memory_limit)
    assert choice.adjoint == expected
    assert choice.bytes / 2.5 < temporary(choice.adjoint) <= choice.bytes <= memory_limit


@pytest.mark.slow
def test_auto_solves_with_its_choice():
    """Catches an Auto that forgets its limit: with hardly any memory it must not keep the state of every step."""

    def loss(params, adjoint):
        solution = adjoint.solve(objective, MOMENTUM, params, WIDE, 40)
        return jnp.sum(solution.params["a"] ** 2) + solution.losses[3]

    small = mk.inner.Auto(memory_limit=200_000)
    text = str(jax.make_jaxpr(jax.grad(lambda p: loss(p, small)))(params_of(16)))
    assert "f64[40,32,16]" not in text
    assert "f64[40,32,16]" in str(jax.make_jaxpr(jax.grad(lambda p: loss(p, mk.inner.Auto())))(params_of(16)))
    actual, expected = (jax.grad(loss)(params_of(16), adjoint) for adjoint in (small, mk.inner.Unrolled()))
    np.testing.assert_allclose(actual["a"], expected["a"], rtol=1e-9)


def test_a_limit_must_be_positive():
    """Catches a limit given in the wrong sign or left at zero."""
    with pytest.raises(ValueError, match=r"memory_limit must be a positive number of bytes, got 0"):
        mk.inner.Auto(memory_limit=0)
