"""Environments: golden values of what is optimal in them, and what they refuse."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)

DISCRETE = [mk.tasks.Bandit([0.2, 0.9]), mk.tasks.TabularMDPs(3, 2, 4)(KEY), mk.tasks.GridWorld(1)]
ALL = [*DISCRETE, mk.tasks.Navigation([0.3, -0.2])]


def name(environment):
    return type(environment).__name__


def play(environment, act, key):
    """The return of one episode, written out here so that it does not lean on `mk.rl.rollout`."""
    reset_key, *keys = jax.random.split(key, environment.horizon + 1)
    state, _ = environment.reset(reset_key)

    def step(carry, key):
        state, alive, total = carry
        moved = environment.step(state, act(state, key), key)
        return (moved.state, alive & ~moved.done, total + jnp.where(alive, moved.reward, 0)), None

    start = (state, jnp.ones((), bool), jnp.zeros(()))
    return jax.lax.scan(step, start, jnp.stack(keys))[0][2]


def mean_and_error(values):
    values = np.asarray(values)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize(
    ("num_pulls", "num_arms", "value"),
    [
        (1, 1, 0.5),
        (1, 2, 0.5),
        (2, 2, 1.083333),
        (3, 2, 1.666667),
        (7, 1, 3.5),
        (10, 2, 6.021786),
        (10, 5, 6.659988),
        (10, 10, 6.713951),
        (10, 50, 6.713951),
        (20, 2, 12.431265),
    ],
)
def test_bayes_optimal_bandit_values(num_pulls, num_arms, value):
    """A posterior off by one, an arm counted twice, or a greedy choice in place of the maximum."""
    assert mk.tasks.bandit_optimal_value(num_pulls, num_arms) == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_bayes_optimal_bandit_value_of_many_pulls():
    """A table that is right only while it is small."""
    assert mk.tasks.bandit_optimal_value(50, 2) == pytest.approx(31.996712, abs=1e-6)


@pytest.mark.slow
def test_known_mdps_have_the_known_value():
    """Value iteration with one step too many or too few, or rewards and transitions drawn from something else."""
    mdps = jax.vmap(mk.tasks.TabularMDPs())(jax.random.split(KEY, 4000))
    solve = jax.jit(jax.vmap(mk.tasks.optimal_values, in_axes=(0, None)))
    mean, error = mean_and_error(solve(mdps, jnp.asarray(1.0))[:, 0, 0])
    assert abs(mean - 21.83) < 3 * np.hypot(error, 0.02)  # the reference is 21.83 ± 0.04, two standard errors
    mean, error = mean_and_error(solve(mdps, jnp.asarray(0.99))[:, 0, 0])
    assert abs(mean - 20.87) < 3 * np.hypot(error, 0.015)


@pytest.mark.slow
def test_acting_by_the_optimal_values_earns_them():
    """Values of another process than the one that is stepped: states and actions swapped, or noise with a mean."""
    mdp = mk.tasks.TabularMDPs(4, 3, 5)(jax.random.key(3))
    values = mk.tasks.optimal_values(mdp)
    best = jnp.stack([jnp.argmax(mdp.rewards + mdp.transitions @ later, axis=1) for later in values[1:]])

    def episode(key):
        state, _ = mdp.reset(key)
        total = jnp.zeros(())
        for t, step_key in enumerate(jax.random.split(key, mdp.horizon)):
            moved = mdp.step(state, best[t, state], step_key)
            state, total = moved.state, total + moved.reward
        return total

    mean, error = mean_and_error(jax.jit(jax.vmap(episode))(jax.random.split(KEY, 20_000)))
    assert abs(mean - values[0, 0]) < 4 * error


def test_the_greedy_walker_returns_what_is_known():
    """A squared distance, steps of another length, a reward before the step, or an episode that goes on at the goal."""

    def one(key):
        task = mk.tasks.Navigations()(key)
        return play(task, lambda state, _: mk.tasks.navigation_greedy(task, state), key)

    mean, error = mean_and_error(jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000)))
    assert abs(mean + 0.504) < 3 * error + 0.0005


def test_navigation_step_written_out():
    """An action that is not clipped, and the end of an episode by the norm instead of by both coordinates."""
    task = mk.tasks.Navigation([0.1, -0.05])
    state, observation = task.reset(KEY)
    np.testing.assert_array_equal(observation, [0, 0])
    moved = task.step(state, jnp.array([7.0, -0.2]), KEY)
    np.testing.assert_allclose(moved.state, [0.1, -0.02], atol=1e-15)
    np.testing.assert_allclose(moved.reward, -0.03, atol=1e-15)
    assert not moved.done
    assert task.step(jnp.array([0.1, -0.05]), jnp.array([0.09, 0.09]), KEY).done  # 0.0127 away, yet both within 0.01
    assert not task.step(jnp.array([0.1, -0.05]), jnp.array([0.11, 0.0]), KEY).done


def test_grid_worlds_by_hand():
    """A goal reached by two moves, an episode that survives a hole, or moves along the wrong axis."""
    for goal in range(4):
        task = mk.tasks.GridWorld(goal)
        state, observation = task.reset(KEY)
        assert observation.argmax() == 4
        moves = [task.step(state, action, KEY) for action in range(4)]
        assert [float(moved.reward) for moved in moves] == [float(action == goal) for action in range(4)]
        assert all(moved.done for moved in moves)
        assert [int(moved.observation.argmax()) for moved in moves] == [3, 7, 5, 1]  # left, down, right, up


@pytest.mark.parametrize("weights", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]])
def test_no_policy_blind_to_the_goal_beats_a_quarter(weights):
    """A goal that is not uniform, or an observation that gives it away. Exact, by enumeration of goals and moves."""
    worlds = [mk.tasks.GridWorld(goal) for goal in range(4)]
    firsts = [world.reset(KEY) for world in worlds]
    assert all(jnp.array_equal(firsts[0][1], observation) for _, observation in firsts)
    earned = [
        sum(w * float(world.step(state, action, KEY).reward) for action, w in enumerate(weights))
        for world, (state, _) in zip(worlds, firsts, strict=True)
    ]
    assert np.mean(earned) == pytest.approx(0.25)
    goals = jax.vmap(mk.tasks.GridWorlds())(jax.random.split(KEY, 4000)).goal
    counts = np.bincount(goals, minlength=4)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi squared, 3 degrees of freedom, 1 in 1000


def test_bandits_pay_by_their_probabilities():
    """An arm's probability used for its neighbour, or arms that are not uniform in [0, 1]."""
    bandit = mk.tasks.Bandit([0.2, 0.9])
    pull = jax.jit(jax.vmap(lambda action, key: bandit.step(None, action, key).reward))
    actions = jnp.repeat(jnp.arange(2), 20_000)
    means = pull(actions, jax.random.split(KEY, 40_000)).reshape(2, -1).mean(1)
    assert np.all(np.abs(np.asarray(means) - [0.2, 0.9]) < 4 * np.sqrt([0.16 / 20_000, 0.09 / 20_000]))
    arms = np.asarray(jax.vmap(mk.tasks.Bandits(5))(jax.random.split(KEY, 4000)).probabilities)
    assert abs(arms.mean() - 0.5) < 4 * np.sqrt(1 / 12 / arms.size)
    assert abs(arms.max(1).mean() - 5 / 6) < 4 * np.sqrt(5 / 252 / 4000)


@pytest.mark.parametrize("environment", ALL, ids=name)
def test_promises_hold_and_a_batch_of_tasks_maps(environment):
    """Observations of another shape than promised, weak types, and functions that do not map over tasks."""
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), environment)

    def first_step(task, key):
        state, observation = task.reset(key)
        action = jnp.zeros((), jnp.int32) if isinstance(task.actions, mk.Discrete) else jnp.zeros(task.actions.size)
        moved = task.step(state, action, key)
        same = jax.tree.map(lambda a, b: a.dtype == b.dtype and a.shape == b.shape, state, moved.state)
        assert all(jax.tree.leaves(same))
        assert observation.shape == moved.observation.shape == task.observation_shape
        assert observation.dtype == moved.observation.dtype == moved.reward.dtype == jnp.float64
        return moved

    alone = jax.jit(first_step)(environment, KEY)
    together = jax.vmap(first_step)(tasks, jnp.stack([KEY, KEY]))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert not a.weak_type
        np.testing.assert_allclose(b[1], a, atol=1e-12)
    # `reset(params, key)` and `step(params, state, action, key)` are the same functions.
    np.testing.assert_array_equal(type(environment).reset(environment, KEY)[1], environment.reset(KEY)[1])


@pytest.mark.parametrize("environment", DISCRETE, ids=name)
@pytest.mark.parametrize("wrong", [-1, 99])
def test_an_action_out_of_range_is_refused_and_never_a_number(environment, wrong):
    """An index that wraps around or is clipped: the reward of another action."""
    state, _ = environment.reset(KEY)
    with pytest.raises(ValueError, match=r"action must be in 0\.\."):
        environment.step(state, wrong, KEY)
    assert jnp.isnan(eqx.filter_jit(environment.step)(state, jnp.asarray(wrong), KEY).reward)
    with pytest.raises(ValueError, match="one integer"):
        environment.step(state, 0.0, KEY)
    with pytest.raises(ValueError, match="one integer"):
        environment.step(state, jnp.zeros((2,), int), KEY)


def test_an_action_that_is_no_vector_is_refused():
    """A scalar that broadcasts to both coordinates, and NaN that a clip hides."""
    task = mk.tasks.Navigation([0.3, -0.2])
    state, _ = task.reset(KEY)
    for wrong in (jnp.zeros(()), jnp.zeros(3), jnp.zeros(2, int)):
        with pytest.raises(ValueError, match=r"real numbers of shape \[2\]"):
            task.step(state, wrong, KEY)
    assert jnp.isnan(task.step(state, jnp.array([jnp.nan, 0.0]), KEY).reward)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.tasks.Bandits(0), "num_arms must be at least 1, got 0"),
        (lambda: mk.tasks.Bandit([]), "at least one arm"),
        (lambda: mk.tasks.Bandit([0.5, 1.5]), r"must be in \[0, 1\]"),
        (lambda: mk.tasks.Bandit([0.5, float("nan")]), r"must be in \[0, 1\]"),
        (lambda: mk.tasks.bandit_optimal_value(0, 2), "num_pulls and num_arms must be at least 1, got 0 and 2"),
        (lambda: mk.tasks.bandit_optimal_value(3, 0), "at least 1, got 3 and 0"),
        (lambda: mk.tasks.TabularMDPs(horizon=0), "horizon is the most steps of an episode.*got 0"),
        (lambda: mk.tasks.TabularMDPs(0), "num_states and num_actions must be at least 1"),
        (lambda: mk.tasks.TabularMDP(jnp.ones((2, 3, 2)), jnp.ones((2, 2)), 5), r"rewards \[states, actions\]"),
        (lambda: mk.tasks.TabularMDP(jnp.ones((2, 3, 4)), jnp.ones((2, 3)), 5), "states they start from"),
        (lambda: mk.tasks.Navigations(horizon=0), "horizon.*got 0"),
        (lambda: mk.tasks.Navigations(goal=(0.5, -0.5)), "goal must be a range"),
        (lambda: mk.tasks.Navigation([0.1]), "goal must be two finite numbers"),
        (lambda: mk.tasks.GridWorld(4), r"goal must be one of 0 \(left\)"),
        (lambda: mk.tasks.GridWorlds(horizon=0), "horizon.*got 0"),
        (lambda: mk.Discrete(0), "size must be an int of at least 1, got 0"),
        (lambda: mk.Continuous(0), "size must be an int of at least 1, got 0"),
    ],
)
def test_refused(make, message):
    """Zero arms, pulls or steps, and numbers that are no probabilities, which all run and give something."""
    with pytest.raises(ValueError, match=message):
        make()


def test_too_many_states_are_refused_before_they_are_visited(monkeypatch):
    """A dynamic programme that takes the machine down."""
    monkeypatch.setattr("metakit.tasks.environments._bandit._MOST_STATES", 2000)
    with pytest.raises(ValueError, match="too many for an exact solution"):
        mk.tasks.bandit_optimal_value(100, 5)


# A stand-in with gymnax's interface (of version 1.0.1), so that gymnax need not be installed.


class Params(NamedTuple):
    drift: Any = 0.5
    max_steps_in_episode: int = 100


class State(NamedTuple):
    position: jax.Array
    time: int


class Space:
    def __init__(self, n=None, shape=()):
        self.shape = shape
        if n is not None:
            self.n = n


class StandIn:
    default_params = Params()
    num_actions = 3

    def reset_env(self, key, params):
        state = State(jax.random.uniform(key, (), jnp.float32), 0)
        return jnp.stack([state.position, params.drift]), state

    def step_env(self, key, state, action, params):
        # As there: a Python integer in the state, and numbers of mixed types.
        position = state.position + params.drift * (action - 1)
        after = State(position, state.time + 1)
        return jnp.stack([position, params.drift]), after, 2 * action, position > 2, {"discount": 1.0}

    def action_space(self, params):
        return Space(n=3)

    def observation_space(self, params):
        return Space(shape=(2,))


def vary(params, key):
    return params._replace(drift=jax.random.uniform(key, (), minval=0.1, maxval=0.9))


def test_a_gymnax_environment_is_a_task():
    """Arguments in another order than gymnax's, its own reset after `done`, and states whose types change in a scan."""
    sampler = mk.tasks.GymnaxEnvironments(StandIn(), vary, horizon=4)
    task = sampler(KEY)
    assert (task.horizon, task.actions, task.observation_shape) == (4, mk.Discrete(3), (2,))
    assert not jnp.array_equal(task.params.drift, sampler(jax.random.key(1)).params.drift)
    state, observation = task.reset(KEY)
    moved = task.step(state, 2, KEY)
    np.testing.assert_allclose(moved.observation[0] - observation[0], task.params.drift, rtol=1e-6)
    assert (float(moved.reward), int(moved.state.time)) == (4.0, 1)
    policy = mk.rl.CategoricalPolicy(mk.nn.Linear(2, 3, key=KEY))
    tasks = eqx.filter_vmap(sampler)(jax.random.split(KEY, 2))
    rollout = eqx.filter_vmap(lambda task, key: mk.rl.rollout(policy, task, key, num_episodes=5))
    trajectories = rollout(tasks, jax.random.split(KEY, 2))
    assert trajectories.rewards.shape == (2, 5, 4)
    np.testing.assert_array_equal(
        trajectories.rewards, 2 * np.asarray(trajectories.actions) * np.asarray(trajectories.mask)
    )
    with pytest.raises(ValueError, match=r"action must be in 0\.\.2"):
        task.step(state, 3, KEY)
    assert jnp.isnan(eqx.filter_jit(task.step)(state, jnp.asarray(3), KEY).reward)


@pytest.mark.slow
def test_gymnax_itself():
    """A stand-in that has drifted from the package: a cart with a pole, whose length differs between tasks."""
    gymnax = pytest.importorskip(
        "gymnax", reason="gymnax is optional: pip install 'metakit[gymnax]'", exc_type=ImportError
    )
    cart, _ = gymnax.make("CartPole-v1")
    sampler = mk.tasks.GymnaxEnvironments(
        cart, lambda params, key: params.replace(length=jax.random.uniform(key, minval=0.2, maxval=1.0)), horizon=30
    )
    policy = mk.rl.CategoricalPolicy(mk.nn.Linear(4, 2, key=KEY))

    @eqx.filter_jit
    def go(key):
        task = sampler(key)
        return task.params.length, mk.rl.rollout(policy, task, key, num_episodes=50)

    (length, data), (other, _) = go(KEY), go(jax.random.key(1))
    assert length != other
    assert data.observations.shape == (50, 30, 4)
    np.testing.assert_array_equal(data.rewards, np.asarray(data.mask, float))  # one for each step that stood
    assert 8 < data.returns.mean() < 30  # a pole falls after about twenty steps at random
    learner = mk.rl_squared.RLSquared(mk.rl_squared.gru_policy((4,), mk.Discrete(2), 4, key=KEY), num_episodes=2)
    loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(mk.rl_squared.meta_loss))(learner, sampler(KEY), KEY)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


class Pixels(StandIn):
    def action_space(self, params):
        return Space(shape=(2, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mk.tasks.GymnaxEnvironments((StandIn(), None), vary, horizon=4), TypeError, "give its first part"),
        (lambda: mk.tasks.GymnaxEnvironments(StandIn(), vary, horizon=0), ValueError, "horizon.*got 0"),
        (lambda: mk.tasks.GymnaxEnvironments(Pixels(), vary, horizon=4)(KEY), ValueError, "action space"),
    ],
)
def test_no_gymnax_environment(make, error, message):
    """gymnax.make's pair passed whole, a horizon of nothing, and actions that are matrices."""
    with pytest.raises(error, match=message):
        make()
