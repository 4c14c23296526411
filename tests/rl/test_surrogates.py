"""Surrogate losses, by exact enumeration: whose derivatives are those of the expected return."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

# Probabilities in eighths, so that episodes can be counted out in place of drawn.
COUNTS = np.array([4, 1, 3])
PI = jnp.asarray(COUNTS / 8)
THETA = jnp.log(PI)
MEANS = jnp.array([0.2, 1.0, 0.5])

# A process of two steps: the first action decides what the second is worth, and what it is chosen with.
FIRST = np.array([2, 6])
SECOND = np.array([[4, 4], [1, 7]])
PAYS = jnp.array([[1.0, -2.0], [0.5, 3.0]])
TWO_STEPS = {"first": jnp.log(jnp.asarray(FIRST / 8)), "second": jnp.log(jnp.asarray(SECOND / 8))}


def bandit_surrogate(kind, theta):
    """Every arm as often as the policy pulls it; advantages are rewards less the expected reward."""
    actions = jnp.asarray(np.repeat(np.arange(3), COUNTS))
    logs, old = jax.nn.log_softmax(theta)[actions][:, None], jax.nn.log_softmax(THETA)[actions][:, None]
    advantages = (MEANS[actions] - PI @ MEANS)[:, None]
    return mk.rl.policy_surrogate(kind, logs, old, advantages, jnp.ones((8, 1), bool))


def bandit_return(theta):
    return jax.nn.softmax(theta) @ MEANS


def test_gradients_and_hessians_on_a_bandit():
    """T28 and T30: every surrogate has ∇J as its gradient; ratio and DiCE have ∇²J, the log probability has 0."""
    pi = PI
    b = pi * (MEANS - pi @ MEANS)
    hessian = jnp.diag(b) - jnp.outer(b, pi) - jnp.outer(pi, b)
    np.testing.assert_allclose(jax.grad(bandit_return)(THETA), b, atol=1e-15)
    np.testing.assert_allclose(jax.hessian(bandit_return)(THETA), hessian, atol=1e-15)
    for kind, expected in (("ratio", hessian), ("dice", hessian), ("logp", jnp.zeros((3, 3)))):
        np.testing.assert_allclose(-jax.grad(bandit_surrogate, argnums=1)(kind, THETA), b, atol=1e-15)
        np.testing.assert_allclose(-jax.hessian(bandit_surrogate, argnums=1)(kind, THETA), expected, atol=1e-15)


def two_step_return(theta):
    return jax.nn.softmax(theta["first"]) @ (jax.nn.softmax(theta["second"]) * PAYS).sum(1)


def two_step_surrogate(kind, theta):
    """Every pair of actions as often as the policy takes it (64 episodes); the reward comes with the second action."""
    pairs = [
        pair
        for pair in itertools.product(range(2), range(2))
        for _ in range(int(FIRST[pair[0]] * SECOND[pair[0]][pair[1]]))
    ]
    first, second = jnp.asarray(pairs).T

    def logs(theta):
        after = jax.nn.log_softmax(theta["second"])[first, second]
        return jnp.stack([jax.nn.log_softmax(theta["first"])[first], after], axis=1)

    rewards = jnp.stack([jnp.zeros(64), PAYS[first, second]], axis=1)
    # Baselines that depend on the state, as a value function would.
    values = jnp.stack([jnp.full(64, 0.7), jnp.asarray([0.3, -1.1])[first]], axis=1)
    yes, one = jnp.ones((64, 2), bool), jnp.ones(())
    advantages = jax.vmap(mk.rl.gae, in_axes=(0, 0, 0, None, None))(rewards, values, yes, one, one)
    return 2 * mk.rl.policy_surrogate(kind, logs(theta), logs(TWO_STEPS), advantages, yes)  # a sum over the steps


def flat_hessian(function):
    flat, unravel = jax.flatten_util.ravel_pytree(TWO_STEPS)
    return jax.hessian(lambda x: function(unravel(x)))(flat)


@pytest.mark.slow
def test_over_two_steps_only_dice_is_exact():
    """The DiCE of single steps passed off as DiCE: without the past's product the mixed block is missing."""
    exact = jax.grad(two_step_return)(TWO_STEPS)
    for kind in ("ratio", "dice", "logp"):
        found = jax.grad(lambda theta, kind=kind: -two_step_surrogate(kind, theta))(TWO_STEPS)
        for name in exact:
            np.testing.assert_allclose(found[name], exact[name], atol=1e-14)
    hessian = flat_hessian(two_step_return)
    found = {
        kind: -flat_hessian(lambda theta, kind=kind: two_step_surrogate(kind, theta)) for kind in ("ratio", "dice")
    }
    np.testing.assert_allclose(found["dice"], hessian, atol=1e-14)
    # "ratio" is right within a step and leaves out only how the first action's probability moves the second's weight.
    np.testing.assert_allclose(found["ratio"][2:, 2:], hessian[2:, 2:], atol=1e-14)
    assert jnp.abs(found["ratio"][:2, 2:] - hessian[:2, 2:]).max() > 0.01


def test_ratio_is_right_on_another_policys_data():
    """A stop-gradient in place of the behaviour's probability, which counts old data as the policy's own."""
    moved = THETA + jnp.array([0.5, -0.3, 0.1])
    value = -bandit_surrogate("ratio", moved) + bandit_return(THETA)
    np.testing.assert_allclose(value, bandit_return(moved), atol=1e-15)
    np.testing.assert_allclose(
        -jax.grad(bandit_surrogate, argnums=1)("ratio", moved), jax.grad(bandit_return)(moved), atol=1e-15
    )


def test_clipped_by_hand():
    """The maximum in place of the minimum, or a clip that stops what makes a bad action less likely."""
    ratios, advantages = jnp.array([[1.5, 0.5, 1.5, 0.5]]), jnp.array([[2.0, 2.0, -2.0, -2.0]])
    old, yes, clip = jnp.zeros((1, 4)), jnp.ones((1, 4), bool), jnp.asarray(0.2)

    def loss(logs):
        return 4 * mk.rl.clipped_surrogate(logs, old, advantages, yes, clip)

    np.testing.assert_allclose(loss(jnp.log(ratios)), -(1.2 * 2 + 0.5 * 2 - 1.5 * 2 - 0.8 * 2), atol=1e-14)
    np.testing.assert_allclose(jax.grad(loss)(jnp.log(ratios)), [[0, -1, 3, 0]], atol=1e-14)


@pytest.mark.parametrize("kind", ["ratio", "dice", "logp"])
def test_steps_that_did_not_take_place_do_not_count(kind):
    """A mean over all steps, or a probability of an idle step in DiCE's product."""
    logs = jnp.log(jnp.array([[0.5, 0.4, 0.9], [0.3, 0.6, 0.2]]))
    advantages, mask = jnp.ones((2, 3)), jnp.array([[True, True, False], [True, True, True]])
    wild = jnp.where(mask, 0.0, 1e3)

    def loss(logs):
        return mk.rl.policy_surrogate(kind, logs, jnp.log(jnp.full((2, 3), 0.5)), advantages, mask)

    value, slope = jax.value_and_grad(loss)(logs + wild)
    assert value == pytest.approx(float(loss(logs)), abs=1e-14)
    assert slope[0, 2] == 0
    assert jnp.isfinite(slope).all()


def test_an_unknown_kind_is_refused():
    """A misspelt surrogate that falls through to another one."""
    ones = jnp.ones((1, 1))
    with pytest.raises(ValueError, match=r"surrogate='dize' is not known\. Did you mean 'dice'"):
        mk.rl.policy_surrogate("dize", ones, ones, ones, jnp.ones((1, 1), bool))
