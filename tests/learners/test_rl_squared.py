"""RL^2: what the memory is given, what the loss is, and how near the optimum of bandits it comes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)
BANDIT = mk.tasks.Bandit([0.2, 0.7])
GRIDS = mk.tasks.GridWorlds(horizon=3)


def policy_of(environment, size=4, key=KEY):
    """With heads far from zero, so that every memory shows."""
    policy = mk.rl_squared.gru_policy(environment.observation_shape, environment.actions, size, key=key)
    shapes = policy.actor.weight.shape, policy.critic.weight.shape
    weights = tuple(jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    return eqx.tree_at(lambda p: (p.actor.weight, p.critic.weight), policy, weights)


def learner(environment=BANDIT, num_episodes=4, **options):
    return mk.rl_squared.RLSquared(policy_of(environment), num_episodes=num_episodes, **options)


ENVIRONMENTS = [BANDIT, GRIDS(KEY), mk.tasks.TabularMDPs(3, 2, 3)(KEY)]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: type(environment).__name__)
def test_adapt_and_predict_go_on_where_the_trial_was(environment):
    """T32: a memory that is reset or read out of order, or a last action, reward or flag that is lost on the way."""
    subject = learner(environment)
    trial = mk.rl_squared.collect(subject, environment, KEY).trajectories
    for episodes in (1, 2, 3):
        support = jax.tree.map(lambda leaf, n=episodes: leaf[:n], trial)
        adapted = mk.rl_squared.adapt(subject, support)
        x = trial.observations[episodes, :1]
        found = mk.rl_squared.predict(adapted, jnp.concatenate([x, 2 * x]))
        np.testing.assert_allclose(found.logits[0], trial.behaviour.logits[episodes, 0], atol=1e-12)
        assert jnp.abs(found.logits[1] - found.logits[0]).max() > 1e-4


def test_continuous_actions_are_remembered():
    """A vector of actions that is encoded as if it were an index."""
    task = mk.tasks.Navigation([0.3, 0.1], 3)
    subject = learner(task, num_episodes=2)
    trial = mk.rl_squared.collect(subject, task, KEY).trajectories
    adapted = mk.rl_squared.adapt(subject, jax.tree.map(lambda leaf: leaf[:1], trial))
    np.testing.assert_array_equal(adapted.last.action, trial.actions[0, -1])
    found = mk.rl_squared.predict(adapted, trial.observations[1, :1])
    np.testing.assert_allclose(found.mean[0], trial.behaviour.mean[1, 0], atol=1e-12)


def test_advantages_look_past_the_end_of_an_episode():
    """Advantages that stop at an episode's end: then nothing teaches the policy to explore in the first ones."""
    subject = learner(discount=0.9, trace_decay=0.5)
    trial = mk.rl_squared.collect(subject, BANDIT, KEY)
    rewards = np.asarray(trial.trajectories.rewards[:, 0])
    values = [*np.asarray(trial.targets - trial.advantages)[:, 0], 0.0]
    advantage, expected = 0.0, []
    for t in reversed(range(4)):
        advantage = rewards[t] + 0.9 * values[t + 1] - values[t] + 0.9 * 0.5 * advantage
        expected.append(advantage)
    np.testing.assert_allclose(trial.advantages[:, 0], expected[::-1], atol=1e-14)
    assert np.abs(values[:4]).min() > 1e-3  # the values do take part


@pytest.mark.parametrize("objective", ["a2c", "ppo"])
def test_the_loss_written_out(objective):
    """A weight on the wrong term, an entropy of the wrong sign, or a mean over steps that did not take place."""
    task = GRIDS(KEY)
    subject = learner(task, objective=objective, value_weight=0.7, entropy_weight=0.3)
    trial = mk.rl_squared.collect(subject, task, KEY)
    mask, acted = np.asarray(trial.trajectories.mask), trial.trajectories
    assert mask.sum() == 4  # a first move each, and idle steps after it
    logs = acted.log_probs if objective == "a2c" else jnp.ones_like(acted.log_probs)
    policy_loss = -(np.asarray(logs) * np.asarray(trial.advantages))[mask].mean()
    entropy = np.asarray(acted.behaviour.entropy())[mask].mean()
    value_loss = (np.asarray(trial.advantages) ** 2)[mask].mean()
    expected = policy_loss + 0.7 * value_loss - 0.3 * entropy
    np.testing.assert_allclose(mk.rl_squared.meta_loss(subject, trial), expected, rtol=1e-12)
    np.testing.assert_allclose(mk.rl_squared.meta_loss(subject, task, KEY), expected, rtol=1e-12)
    report = mk.rl_squared.diagnostics(subject, task, KEY)
    np.testing.assert_allclose(report.returns, acted.rewards.sum(1), rtol=1e-12)
    np.testing.assert_allclose([report.entropy, report.value_error], [entropy, value_loss], rtol=1e-12)


def test_both_objectives_have_the_policy_gradient():
    """A ratio whose gradient on fresh data is not the log probability's."""
    gradients = []
    for objective in ("a2c", "ppo"):
        subject = learner(objective=objective)
        gradients.append(eqx.filter_grad(mk.rl_squared.meta_loss)(subject, BANDIT, KEY).policy)
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_policy_gradient_is_that_of_the_trials_reward():
    """Advantages of the wrong sign or step. Exact: all trials of two pulls, weighed by their probability.

    Without a discount, trace decay or values, the mean over trials of the loss's gradient is that of the expected sum.
    """
    subject = learner(num_episodes=2, discount=1.0, trace_decay=1.0, value_weight=0.0, entropy_weight=0.0)
    subject = eqx.tree_at(lambda s: s.policy.critic, subject, replace_fn=lambda c: jax.tree.map(jnp.zeros_like, c))
    chance = np.asarray(BANDIT.probabilities)
    template = mk.rl_squared.collect(subject, BANDIT, KEY)
    outcomes = [(a, r) for a in (0, 1) for r in (0.0, 1.0)]
    trials = [(first, second) for first in outcomes for second in outcomes]

    def record(trial):
        actions = jnp.asarray([[a] for a, _ in trial], jnp.int32)
        rewards = jnp.asarray([[r] for _, r in trial])
        data = eqx.tree_at(lambda t: (t.trajectories.actions, t.trajectories.rewards), template, (actions, rewards))
        returns = jnp.cumsum(rewards[::-1], axis=0)[::-1]
        data = eqx.tree_at(lambda t: (t.advantages, t.targets), data, (returns, returns))
        logits = distribution(subject.policy, data).logits[:, None]
        return eqx.tree_at(lambda t: t.trajectories.behaviour.logits, data, logits)

    def distribution(policy, data):
        seen, _ = mk.rl.tokens(data.trajectories, BANDIT.actions)
        return policy.read(seen)[1]

    def probability(policy, data, trial):
        logs = distribution(policy, data).log_prob(data.trajectories.actions[:, 0])
        paid = np.prod([chance[a] if r else 1 - chance[a] for a, r in trial])
        return jnp.exp(logs.sum()) * paid

    def expected(policy):
        return sum(probability(policy, record(trial), trial) * sum(r for _, r in trial) for trial in trials)

    exact = eqx.filter_grad(expected)(subject.policy)
    loss = eqx.filter_jit(eqx.filter_grad(mk.rl_squared.meta_loss))
    total = jax.tree.map(jnp.zeros_like, eqx.filter(subject.policy, eqx.is_inexact_array))
    for trial in trials:
        data = record(trial)
        weight = 2 * probability(subject.policy, data, trial)  # the loss is a mean over two steps
        total = jax.tree.map(lambda t, g, w=weight: t - w * g, total, loss(subject, data).policy)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.slow
def test_convolutions_and_attention_stand_in_for_the_gru():
    """A policy that only works with a vector for a memory. SNAIL keeps every token, and has room for five here."""
    size = mk.rl_squared.token_size((1,), mk.Discrete(2))
    convolution_key, attention_key = jax.random.split(KEY)
    convolutions = mk.nn.TemporalConvolution(size, 3, length=5, key=convolution_key)
    attention = mk.nn.CausalAttention(convolutions.out_size, 4, 2, key=attention_key)
    network = mk.nn.CausalSequence([convolutions, attention], length=5)
    assert isinstance(network, mk.nn.SequenceModel)
    policy = mk.rl_squared.RecurrentPolicy(network, (1,), mk.Discrete(2), key=KEY)
    weight = jax.random.normal(KEY, policy.actor.weight.shape)
    policy = eqx.tree_at(lambda p: p.actor.weight, policy, weight)
    subject = mk.rl_squared.RLSquared(policy, num_episodes=4)
    trial = mk.rl_squared.collect(subject, BANDIT, KEY)
    assert abs(mk.rl_squared.divergence(subject, trial)) < 1e-12  # reading gives what stepping gave
    assert trial.trajectories.behaviour.logits.std(0).max() > 1e-3  # and both depend on what was seen
    support = jax.tree.map(lambda leaf: leaf[:3], trial.trajectories)
    found = mk.rl_squared.predict(mk.rl_squared.adapt(subject, support), jnp.ones((1, 1)))
    np.testing.assert_allclose(found.logits, trial.trajectories.behaviour.logits[3], atol=1e-12)
    gradient = eqx.filter_grad(mk.rl_squared.meta_loss)(subject, trial).policy.network
    for layer in gradient.layers:  # not every leaf: a lag longer than the trial and a bias of the keys have none
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(layer)) > 1e-6
    # With the whole trial read there is one place left, for the step that `predict` asks about; not two.
    whole = mk.rl_squared.adapt(subject, trial.trajectories)
    assert jnp.isfinite(mk.rl_squared.predict(whole, jnp.ones((1, 1))).logits).all()
    full = eqx.tree_at(lambda a: a.state, whole, whole.policy.step(whole.state, whole.last)[0])
    with pytest.raises(ValueError, match="cache is full: it holds length=5 tokens"):
        mk.rl_squared.predict(full, jnp.ones((1, 1)))
    assert jnp.isnan(eqx.filter_jit(mk.rl_squared.predict)(full, jnp.ones((1, 1))).logits).all()
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), trial.trajectories)
    with pytest.raises(
        ValueError, match=r"cannot read support of 8 episodes \* 1 steps = 8 tokens: .* at most length=5"
    ):
        mk.rl_squared.adapt(subject, twice)
    # Acting for longer than the memory lasts would go on, at random, with returns that look like any others.
    longer = mk.rl_squared.RLSquared(policy, num_episodes=6)
    for act in (mk.rl_squared.collect, mk.rl_squared.diagnostics, mk.rl_squared.meta_loss):
        with pytest.raises(ValueError, match=r"num_episodes . horizon = 6 steps: .* at most length=5 tokens, got 6"):
            act(longer, BANDIT, KEY)


def total(learner, task, key):
    return mk.rl_squared.diagnostics(learner, task, key).returns.sum()


def score(subject, tasks, num_tasks):
    scores = mk.evaluate.scores_of(eqx.Partial(total, subject), tasks, jax.random.key(2), num_tasks=num_tasks)
    return mk.evaluate.student_t(scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "rule", "num_steps"),
    [("ppo", mk.train.Epochs(3), 60), ("a2c", mk.train.step, 180)],
    ids=["ppo", "a2c"],  # whose data serve one step
)
def test_meta_training_beats_the_untrained_policy_and_not_the_optimum(objective, rule, num_steps):
    """T31: everything at once, on six pulls of two arms. Random pulling earns 3; nothing can earn more than 3.49."""
    tasks = mk.tasks.Bandits(2)
    policy = mk.rl_squared.gru_policy((1,), mk.Discrete(2), 16, key=KEY)
    untrained = mk.rl_squared.RLSquared(policy, num_episodes=6, objective=objective)
    optimiser = mk.train.adam(2e-2, clip_norm=1.0)
    state = mk.train.init(untrained, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(
        mk.rl_squared, optimiser, state, tasks, num_steps=num_steps, meta_batch=128, rule=rule
    )
    start, trained = (score(subject, tasks, 4000) for subject in (untrained, state.learner))
    assert start.low < 3 < start.high or abs(start.mean - 3) < 3 * start.std / np.sqrt(4000)
    assert trained.low > start.high, f"{trained} is not above {start}"
    assert trained.mean < mk.tasks.bandit_optimal_value(6, 2) + 3 * trained.std / np.sqrt(4000)


@pytest.mark.parametrize(
    ("taken", "message"),
    [
        (2, "an action of support is not of Discrete.size=2.: 2 in episode 1, step 0"),
        (-1, "-1 in episode 1"),
        (0.5, "the actions of support, of dtype float64 and shape .4, 1., are not of Discrete.size=2."),
    ],
)
def test_actions_of_another_environment_are_refused(taken, message):
    """An action out of range that a network reads as zeros, so as no action at all."""
    subject = learner()
    trial = mk.rl_squared.collect(subject, BANDIT, KEY).trajectories
    actions = jnp.asarray(trial.actions, type(taken)).at[1].set(taken)
    wrong = eqx.tree_at(lambda t: t.actions, trial, actions)
    with pytest.raises(ValueError, match=message):
        mk.rl_squared.adapt(subject, wrong)
    loss, data = mk.rl_squared.meta_loss, mk.rl_squared.collect(subject, BANDIT, KEY)
    with pytest.raises(ValueError, match=message.replace("support", "the trajectories")):
        loss(subject, eqx.tree_at(lambda t: t.trajectories, data, wrong))
    if isinstance(taken, int):  # compiled, where nothing can raise
        assert jnp.isnan(eqx.filter_jit(mk.rl_squared.adapt)(subject, wrong).state).all()


def test_vectors_of_another_size_are_refused():
    """Actions of three numbers, read by a policy of two, as tokens of another size."""
    task = mk.tasks.Navigation([0.3, 0.1], 3)
    subject = learner(task, num_episodes=2)
    trial = mk.rl_squared.collect(subject, task, KEY).trajectories
    wrong = eqx.tree_at(lambda t: t.actions, trial, jnp.ones((2, 3, 3)))
    with pytest.raises(ValueError, match=r"shape \[2, 3, 3\], are not of Continuous\(size=2\)"):
        mk.rl_squared.adapt(subject, wrong)


make = functools.partial(mk.rl_squared.RLSquared, policy_of(BANDIT))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(num_episodes=0), ValueError, "num_episodes must be at least 1"),
        (lambda: make(num_episodes=2, objective="trpo"), ValueError, "objective='trpo' is not known"),
        (lambda: make(num_episodes=2, clip=jnp.ones(2)), ValueError, "clip must be one number"),
        (lambda: mk.rl_squared.RLSquared(mk.nn.Linear(1, 2, key=KEY), num_episodes=2), TypeError, "AbstractRecurrent"),
        (lambda: mk.rl_squared.meta_loss(learner(), BANDIT), ValueError, "rl_squared acts .* needs a key"),
        (lambda: mk.rl_squared.collect(learner(), BANDIT), ValueError, "needs a key"),
        (lambda: mk.rl_squared.meta_loss(learner(), mk.tasks.Bandit([0.1] * 3), KEY), ValueError, "acts in Discrete"),
        (lambda: mk.rl_squared.meta_loss(learner(), ENVIRONMENTS[2], KEY), ValueError, r"observations of shape \[1\]"),
        (
            lambda: mk.rl_squared.RecurrentPolicy(mk.nn.GRU(4, 2, key=KEY), (1,), mk.Discrete(2), key=KEY),
            ValueError,
            "tokens of 5 features",
        ),
        (
            lambda: mk.rl_squared.RecurrentPolicy(mk.nn.Linear(5, 2, key=KEY), (1,), mk.Discrete(2), key=KEY),
            TypeError,
            "network must be an mk.nn.SequenceModel",
        ),
    ],
)
def test_refused(call, error, message):
    """Nothing to remember with, or to act in."""
    with pytest.raises(error, match=message):
        call()
