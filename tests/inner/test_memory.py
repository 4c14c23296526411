"""What the adjoints keep, by the compiler's own analysis: the figures of the documentation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import metakit as mk


def temporary_bytes(adjoint, solver, num_steps, *, widths=(64, 256, 3), examples=512, dtype=jnp.float32):
    """Temporary memory of the compiled gradient with respect to parameters and data."""
    in_size, width, depth = widths
    keys = jax.random.split(jax.random.key(0), 3)
    model = mk.nn.MLP(in_size, 1, width, depth, jnp.tanh, key=keys[0])
    arrays, static = eqx.partition(model, eqx.is_array)
    arrays = jax.tree.map(lambda leaf: leaf.astype(dtype), arrays)
    data = (jax.random.normal(keys[1], (examples, in_size), dtype), jax.random.normal(keys[2], (examples, 1), dtype))

    def objective(params, args, step):
        decay, x, y = args
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.mean((eqx.combine(params, static)(x) - y) ** 2) + decay * squares

    def outer(decay, params):
        adapted = adjoint.solve(objective, solver, params, (decay, *data), num_steps).params
        return objective(adapted, (decay, *data), None)

    lowered = jax.jit(jax.grad(outer)).lower(jnp.asarray(1e-3, dtype), arrays)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("num_steps", [64, 256])
def test_a_tenth_of_the_plain_unroll_at_most(num_steps):
    """Catches stored activations: the MLP 64-256-256-256-1 on batches of 512, on which the unroll takes 583 MiB at 64
    steps."""
    unrolled = temporary_bytes(mk.inner.Unrolled(), mk.inner.SGD(0.1), num_steps)
    assert unrolled > num_steps * 3 * 512 * 256 * 4
    for adjoint in (mk.inner.Checkpointed(), mk.inner.MixedMode(), mk.inner.MixedMode(checkpointed=True)):
        assert temporary_bytes(adjoint, mk.inner.SGD(0.1), num_steps) <= 0.1 * unrolled, adjoint


SMALL = {"widths": (16, 32, 2), "examples": 64}


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    ("adjoint", "growth"),
    [
        # One step, whatever K; the losses of the steps are not differentiated, and drop out.
        (mk.inner.Implicit(tolerance=None), 1.05),
        (mk.inner.Truncated(10), 1.05),
        (mk.inner.Forward(), 1.05),
        # 0.2 bits a parameter and step at a decay of 0.9, of which XLA holds two copies.
        (mk.inner.Reversible(0.89), 3.2),
        # sqrt(5000 / 50) = 10 times the states.
        (mk.inner.Checkpointed(), 10.5),
        (mk.inner.MixedMode(checkpointed=True), 10.5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, mk.inner.AbstractAdjoint) else "",
)
def test_growth_from_50_to_5000_steps(adjoint, growth):
    """Catches an adjoint whose memory grows faster than it promises; the plain unroll's grows a hundredfold."""
    solver = mk.inner.Momentum(0.1, 0.9)
    few, many = (temporary_bytes(adjoint, solver, num_steps, dtype=jnp.float64, **SMALL) for num_steps in (50, 5000))
    assert many <= growth * few
    unrolled = [temporary_bytes(mk.inner.Unrolled(), solver, n, dtype=jnp.float64, **SMALL) for n in (50, 500)]
    assert unrolled[1] > 8 * unrolled[0]
