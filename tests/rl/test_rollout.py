"""Acting: what is recorded, what is idle, and what a memory carries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)


class Counting(mk.AbstractEnvironment):
    """Counts its steps; the episode ends at `length`, and a reward says which step it was."""

    length: jax.Array
    horizon: int = eqx.field(static=True, default=5)
    actions: mk.Discrete = eqx.field(static=True, default=mk.Discrete(3))
    observation_shape: tuple = eqx.field(static=True, default=(2,))

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(2)

    def step(self, state, action, key):
        # Beyond its end it gives what must not be seen.
        reward = jnp.where(state >= self.length, jnp.nan, 1.0 + state)
        return mk.Transition(state + 1, jnp.full((2,), 1.0 + state), reward, state + 1 >= self.length)


def counting(length):
    return Counting(jnp.asarray(float(length)))


def policy():
    return mk.rl.CategoricalPolicy(mk.nn.Linear(2, 3, key=KEY))


def test_a_rollout_of_known_length():
    """Steps after the end that are counted, a mask one step late, or an observation from after the action."""
    data = mk.rl.rollout(policy(), counting(3), KEY, num_episodes=4)
    np.testing.assert_array_equal(data.mask, [[True, True, True, False, False]] * 4)
    np.testing.assert_array_equal(data.rewards, [[1, 2, 3, 0, 0]] * 4)
    np.testing.assert_array_equal(data.observations[:, :4, 0], [[0, 1, 2, 3]] * 4)
    np.testing.assert_array_equal(data.returns, [6] * 4)
    expected = mk.rl.distributions(policy(), data.observations)
    np.testing.assert_allclose(data.behaviour.logits, expected.logits, atol=1e-14)
    np.testing.assert_allclose(data.log_probs, expected.log_prob(data.actions), atol=1e-14)


def test_episodes_and_steps_have_their_own_randomness():
    """One key for all episodes or all steps: then actions repeat. Each action is as likely as the policy says."""
    uniform = jax.tree.map(jnp.zeros_like, policy())
    actions = np.asarray(mk.rl.rollout(uniform, counting(5), KEY, num_episodes=2000).actions)
    assert np.abs(np.bincount(actions.ravel(), minlength=3) / actions.size - 1 / 3).max() < 0.02
    for pair in ((actions[:, 0], actions[:, 1]), (actions[:-1, 0], actions[1:, 0])):
        assert abs(np.mean(pair[0] == pair[1]) - 1 / 3) < 0.05
    assert not np.array_equal(
        actions, mk.rl.rollout(uniform, counting(5), jax.random.key(1), num_episodes=2000).actions
    )


def test_no_gradient_through_a_rollout():
    """A policy differentiated through its own sampling beside the surrogate."""
    network = mk.nn.Linear(2, 2, key=KEY)

    def total(network):
        walker = mk.rl.GaussianPolicy(network, 2)
        return mk.rl.rollout(walker, mk.tasks.Navigation([0.3, 0.1], 4), KEY, num_episodes=2).rewards.sum()

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(eqx.filter_grad(total)(network)))


def gru(environment, size=4):
    policy = mk.rl_squared.gru_policy(environment.observation_shape, environment.actions, size, key=KEY)
    # The heads start near zero, where every memory looks alike.
    heads = lambda p: (p.actor.weight, p.critic.weight)
    return eqx.tree_at(heads, policy, (jnp.linspace(-3, 3, 4 * 3).reshape(4, 3), jnp.ones((4, 1))))


def test_a_trial_carries_its_memory_and_nothing_else():
    """T32: two episodes back to back are one scan with the memory carried, from the same start in every trial."""
    environment, recurrent = counting(5), None
    recurrent = gru(environment)
    data, values = mk.rl.trial(recurrent, environment, KEY, num_episodes=2)
    state, token = recurrent.start(), None
    previous = (jnp.zeros(3), jnp.zeros(()), jnp.zeros(()))
    for e in range(2):
        for t in range(5):
            token = mk.rl.Token(jnp.full((2,), float(t)), *previous)
            state, distribution, value = recurrent.step(state, token)
            np.testing.assert_allclose(data.behaviour.logits[e, t], distribution.logits, atol=1e-12)
            np.testing.assert_allclose(values[e, t], value, atol=1e-12)
            action = jax.nn.one_hot(data.actions[e, t], 3)
            previous = (action, jnp.asarray(1.0 + t), jnp.asarray(float(t == 4)))
    # Had the memory been dropped between episodes, the second would begin as the first did.
    assert jnp.abs(data.behaviour.logits[1, 0] - data.behaviour.logits[0, 0]).max() > 1e-3
    # Another trial before it changes nothing: what is carried is carried within one call only.
    mk.rl.trial(recurrent, environment, jax.random.key(7), num_episodes=3)
    again, _ = mk.rl.trial(recurrent, environment, KEY, num_episodes=2)
    np.testing.assert_array_equal(again.behaviour.logits, data.behaviour.logits)
    first = [mk.rl.trial(recurrent, environment, jax.random.key(i), num_episodes=1)[0] for i in range(3)]
    assert all(jnp.array_equal(trial.behaviour.logits[0, 0], data.behaviour.logits[0, 0]) for trial in first)


@pytest.mark.parametrize("length", [2, 5])
def test_tokens_are_what_the_policy_saw(length):
    """A flag, an action or a reward of the wrong step: then reading the trial gives other logits than going through."""
    environment = counting(length)
    recurrent = gru(environment)
    data, values = mk.rl.trial(recurrent, environment, KEY, num_episodes=3)
    seen, last = mk.rl.tokens(data, environment.actions)
    _, distributions, read = recurrent.read(seen)
    np.testing.assert_allclose(distributions.logits, data.behaviour.logits.reshape(15, 3), atol=1e-12)
    np.testing.assert_allclose(read, values.reshape(15), atol=1e-12)
    done = [t + 1 >= length for t in range(5)]
    np.testing.assert_array_equal(seen.done, [0, *done, *done, *done[:-1]])
    assert last.done == 1
    np.testing.assert_array_equal(data.mask, [[t < length for t in range(5)]] * 3)


class Liar(Counting):
    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: mk.rl.rollout(policy(), counting(3), KEY, num_episodes=0),
            ValueError,
            "num_episodes must be at least",
        ),
        (lambda: mk.rl.trial(gru(counting(3)), counting(3), KEY, num_episodes=0), ValueError, "num_episodes must be"),
        (
            lambda: mk.rl.rollout(policy(), Counting(jnp.asarray(3.0), horizon=0), KEY, num_episodes=1),
            ValueError,
            "horizon .*got 0",
        ),
        (
            lambda: mk.rl.rollout(policy(), Counting(jnp.asarray(3.0), actions=mk.Discrete(4)), KEY, num_episodes=1),
            ValueError,
            r"acts in Discrete\(size=3\).*Discrete\(size=4\)",
        ),
        (
            lambda: mk.rl.rollout(policy(), mk.tasks.Navigation([0.1, 0.1]), KEY, num_episodes=1),
            ValueError,
            r"acts in Discrete\(size=3\).*Continuous\(size=2\)",
        ),
        (
            lambda: mk.rl.rollout(mk.nn.Linear(2, 3, key=KEY), counting(3), KEY, num_episodes=1),
            TypeError,
            "must return an mk.rl distribution",
        ),
        (lambda: mk.rl.rollout(policy(), Liar(jnp.asarray(3.0)), KEY, num_episodes=1), ValueError, r"promises .*\[2\]"),
        (lambda: mk.rl.trial(gru(counting(3)), Liar(jnp.asarray(3.0)), KEY, num_episodes=1), ValueError, "promises"),
    ],
)
def test_refused(make, error, message):
    """Policies that act in another space, where an index is clipped and a vector broadcasts; and nothing to do."""
    with pytest.raises(error, match=message):
        make()
