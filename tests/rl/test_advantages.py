"""Returns, advantages and the linear baseline: hand-computed numbers, and loops written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

YES = jnp.ones(4, bool)
REWARDS, VALUES = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([0.3, 0.1, -0.4, 2.0])


def scalar(x):
    return jnp.asarray(float(x))


def loop(rewards, values, discount, decay):
    """Equation 16 of Schulman et al.: a sum of discounted temporal differences for every step."""
    values = [*values, 0.0]
    deltas = [r + discount * after - now for r, now, after in zip(rewards, values, values[1:], strict=False)]
    return [sum((discount * decay) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_gae_golden():
    """A trace that decays by λ alone, or a value one step late. By hand, γ = 0.5 and λ = 0.5:

    δ = (1 + 0.05 - 0.3, -2 - 0.2 - 0.1, 0.5 + 1 + 0.4, 3 - 2) = (0.75, -2.3, 1.9, 1).
    """
    expected = [0.75 + 0.25 * (-2.3 + 0.25 * (1.9 + 0.25)), -2.3 + 0.25 * (1.9 + 0.25), 1.9 + 0.25, 1.0]
    np.testing.assert_allclose(mk.rl.gae(REWARDS, VALUES, YES, scalar(0.5), scalar(0.5)), expected, atol=1e-14)
    np.testing.assert_allclose(loop(REWARDS, VALUES, 0.5, 0.5), expected, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_gae_is_the_sum(decay):
    """The two ends: one-step temporal differences, and the return minus the value."""
    found = mk.rl.gae(REWARDS, VALUES, YES, scalar(0.9), scalar(decay))
    np.testing.assert_allclose(found, loop(REWARDS, VALUES, 0.9, decay), atol=1e-14)
    if decay == 1.0:
        returns = mk.rl.discounted_returns(REWARDS, YES, scalar(0.9))
        np.testing.assert_allclose(found, returns - VALUES, atol=1e-14)


def test_steps_that_did_not_take_place_are_not_there():
    """A discount for time that did not pass, a value of an idle step, or a reward of it, here NaN."""
    mask = jnp.array([True, False, False, True, True, False])
    nan = jnp.nan
    rewards = jnp.array([1.0, nan, nan, -2.0, 0.5, nan])
    values = jnp.array([0.3, nan, nan, 0.1, -0.4, nan])
    found = mk.rl.gae(rewards, values, mask, scalar(0.9), scalar(0.8))
    short = mk.rl.gae(rewards[mask], values[mask], jnp.ones(3, bool), scalar(0.9), scalar(0.8))
    np.testing.assert_array_equal(found[mask], short)
    np.testing.assert_array_equal(found[~mask], 0)


def test_standardised():
    """A variance over all steps where only some took place, and 0 / 0 where all are equal."""
    values, mask = jnp.array([[1.0, 2.0], [6.0, 99.0]]), jnp.array([[True, True], [True, False]])
    found = mk.rl.standardise(values, mask)
    taken = np.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(found[mask], (taken - 3) / taken.std(), atol=1e-7)
    assert found[1, 1] == 0
    equal = jnp.full((3,), 2.0)
    yes = jnp.ones(3, bool)
    np.testing.assert_array_equal(mk.rl.standardise(equal, yes), 0)
    assert jnp.isfinite(jax.grad(lambda x: mk.rl.standardise(x, yes)[0])(equal)).all()


def trajectories(dtype=jnp.float64):
    random = np.random.default_rng(0)
    observations = jnp.asarray(random.normal(size=(5, 6, 3)) * 6, dtype)  # some beyond the clip at 10
    mask = jnp.arange(6)[None] < jnp.asarray([6, 4, 6, 1, 5])[:, None]
    rewards = jnp.asarray(random.normal(size=(5, 6)) + 3, dtype)
    behaviour = mk.rl.Categorical(jnp.zeros((5, 6, 2), dtype))
    return mk.rl.Trajectories(observations, jnp.zeros((5, 6), jnp.int32), rewards, mask, behaviour)


def test_linear_baseline_equals_numpy():
    """A clip left out, time that does not start anew, a penalty on the mean, or idle steps in the fit."""
    data = trajectories()
    mask, rewards = np.asarray(data.mask), np.asarray(data.rewards)
    rows, targets = [], []
    for e in range(5):
        for t in np.flatnonzero(mask[e]):
            o = np.clip(np.asarray(data.observations[e, t]), -10, 10)
            rows.append([*o, *o**2, t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0])
            targets.append(sum(0.9**k * r for k, r in enumerate(rewards[e, t:][mask[e, t:]])))
    rows, targets = np.array(rows), np.array(targets)
    weights = np.linalg.solve(rows.T @ rows + 0.1 * np.eye(10), rows.T @ targets)
    found = mk.rl.linear_baseline(data, scalar(0.9), scalar(0.1))
    np.testing.assert_allclose(found[data.mask], rows @ weights, atol=1e-10)
    np.testing.assert_array_equal(found[~data.mask], 0)


def test_linear_baseline_of_constant_observations_in_32_bits():
    """Columns that are equal or zero, with a penalty that vanishes beside thousands of steps: NaN, or any number."""
    random = np.random.default_rng(1)
    rewards = jnp.asarray(random.normal(size=(4000, 1)) + 3, jnp.float32)
    shape = rewards.shape
    behaviour = mk.rl.Categorical(jnp.zeros((*shape, 2), jnp.float32))
    ones, yes = jnp.ones((*shape, 1), jnp.float32), jnp.ones(shape, bool)
    data = mk.rl.Trajectories(ones, jnp.zeros(shape, jnp.int32), rewards, yes, behaviour)
    found = mk.rl.linear_baseline(data, jnp.asarray(0.99, jnp.float32), jnp.asarray(1e-5, jnp.float32))
    # Sums of 4,000 numbers, in an order of the compiler's: 4,000 roundings of 6e-8 at worst.
    np.testing.assert_allclose(found, rewards.mean(), rtol=2.4e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"rewards": d.rewards[0]}, r"rewards must be \[episodes, horizon\]"),
        (lambda d: {"rewards": d.rewards[:, :0]}, "at least one of each"),
        (lambda d: {"rewards": d.rewards[:0]}, "at least one of each"),
        (lambda d: {"actions": d.actions[:, :3]}, r"actions must lead with .*\[5, 6\], got shape \[5, 3\]"),
        (lambda d: {"mask": d.mask.astype(float)}, "mask must be Booleans"),
        (lambda d: {"behaviour": mk.rl.Categorical(jnp.zeros((5, 2)))}, r"behaviour\.logits must lead with"),
    ],
)
def test_trajectories_refuse(change, message):
    """One episode without its axis, and parts of different lengths, which broadcast."""
    data = trajectories()
    fields = {name: getattr(data, name) for name in ("observations", "actions", "rewards", "mask", "behaviour")}
    with pytest.raises(ValueError, match=message):
        mk.rl.Trajectories(**{**fields, **change(data)})
