"""MAML on policy gradients: exact meta-gradients by enumeration, and what sampling makes of them."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

KEY = jax.random.key(0)

# A bandit of fixed payments, and a policy whose probabilities are eighths, so that pulls can be counted out.
COUNTS = np.array([4, 1, 3])
THETA = jnp.log(jnp.asarray(COUNTS / 8))
PAYS = jnp.array([0.2, 1.0, 0.5])
RATE = 1.5


class Softmax(eqx.Module):
    """A policy that is nothing but logits."""

    theta: jax.Array

    def __call__(self, observations):
        return mk.rl.Categorical(jnp.broadcast_to(self.theta[None], (len(observations), len(self.theta))))


def learner(theta=THETA, **options):
    options = {"inner": mk.inner.SGD(RATE), "baseline": "none", "standardise": False, **options}
    return mk.rl_maml.RLMAML(Softmax(theta), **options)


def counted(rewards):
    """Every arm as often as the policy pulls it in eight episodes."""
    actions = jnp.asarray(np.repeat(np.arange(3), COUNTS)[:, None], jnp.int32)
    behaviour = mk.rl.Categorical(jnp.broadcast_to(THETA[None, None], (8, 1, 3)))
    return mk.rl.Trajectories(jnp.ones((8, 1, 1)), actions, rewards[actions], jnp.ones((8, 1), bool), behaviour)


def expected_return(theta):
    return jax.nn.softmax(theta) @ PAYS


def exact(theta):
    """T28: the return after a step along the exact gradient; its gradient is (I + αH) ∇J(θ + α∇J(θ))."""
    return expected_return(theta + RATE * jax.grad(expected_return)(theta))


# The mean reward is taken off for the inner loop, as a baseline would; the outer ratio makes the query exact for any θ.
EXPERIENCE = mk.rl_maml.Experience((counted(PAYS - expected_return(THETA)),), counted(PAYS))


@pytest.mark.parametrize("surrogate", ["ratio", "dice", "logp"])
def test_the_meta_gradient_by_enumeration(surrogate):
    """T29: the log probability's "second order" is first-order MAML exactly; ratio and DiCE are exact MAML."""
    subject = learner(surrogate=surrogate)
    value, gradient = eqx.filter_value_and_grad(mk.rl_maml.meta_loss)(subject, EXPERIENCE)
    np.testing.assert_allclose(value, -exact(THETA), atol=1e-15)
    pi = jax.nn.softmax(THETA)
    b = pi * (PAYS - pi @ PAYS)
    hessian = jnp.diag(b) - jnp.outer(b, pi) - jnp.outer(pi, b)
    first_order = jax.grad(expected_return)(THETA + RATE * b)
    second_order = (jnp.eye(3) + RATE * hessian) @ first_order
    np.testing.assert_allclose(jax.grad(exact)(THETA), second_order, atol=1e-15)
    assert jnp.abs(first_order - second_order).max() > 5e-3
    expected = first_order if surrogate == "logp" else second_order
    np.testing.assert_allclose(-gradient.policy.theta, expected, atol=1e-14)
    by_adjoint = eqx.filter_grad(mk.rl_maml.meta_loss)(
        learner(surrogate=surrogate, adjoint=mk.inner.FirstOrder()), EXPERIENCE
    )
    np.testing.assert_allclose(-by_adjoint.policy.theta, first_order, atol=1e-14)


class Fixed(mk.AbstractEnvironment):
    """Pays what each arm is worth, without noise."""

    pays: jax.Array
    horizon: int = eqx.field(static=True, default=1)
    actions: mk.Discrete = eqx.field(static=True, default=mk.Discrete(3))
    observation_shape: tuple = eqx.field(static=True, default=(1,))

    def reset(self, key):
        return None, jnp.ones(1)

    def step(self, state, action, key):
        return mk.Transition(None, jnp.ones(1), self.pays[action], jnp.ones((), bool))


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["ratio", "logp"])
def test_sampled_meta_gradients_converge(surrogate):
    """T28, end to end: acting, baseline and all. Twenty batches of 10,000 episodes, whose bias is of order 1e-4."""
    subject = learner(surrogate=surrogate, num_episodes=10_000, baseline="linear")
    gradient = eqx.filter_jit(eqx.filter_vmap(eqx.filter_grad(mk.rl_maml.meta_loss), in_axes=(None, None, 0)))
    found = -np.asarray(gradient(subject, Fixed(PAYS), jax.random.split(KEY, 20)).policy.theta)
    b = jax.grad(expected_return)(THETA)
    expected = jax.grad(exact)(THETA) if surrogate == "ratio" else jax.grad(expected_return)(THETA + RATE * b)
    error = found.std(0, ddof=1) / np.sqrt(20)
    np.testing.assert_array_less(np.abs(found.mean(0) - expected), 4 * error + 2e-4)
    assert error.max() < 2e-3  # an order of magnitude below what tells the two apart


def test_two_batches_are_two_steps():
    """A second step on the first batch, or from the start, or with advantages of another batch."""
    first, second = counted(PAYS), counted(1 - PAYS)
    both = mk.rl_maml.adapt(learner(), (first, second)).policy.theta
    halfway = mk.rl_maml.adapt(learner(), first).policy.theta
    twice = mk.rl_maml.adapt(learner(halfway), second).policy.theta
    np.testing.assert_allclose(both, twice, atol=1e-14)
    assert jnp.abs(both - mk.rl_maml.adapt(learner(), (second, first)).policy.theta).max() > 1e-3
    np.testing.assert_array_equal(mk.rl_maml.adapt(learner(), ()).policy.theta, THETA)


@pytest.mark.slow
def test_solvers_rates_and_filters_of_the_inner_loop_serve():
    """An inner loop of its own that knows no rates per step, and a filter that is accepted and not used."""
    rates = Softmax(mk.fixed(jnp.array([RATE, 0.0])))
    stepwise = learner(inner=mk.inner.PerLayerPerStepSGD(rates))
    one, batch = mk.rl_maml.adapt(learner(), counted(PAYS)), counted(PAYS)
    np.testing.assert_allclose(mk.rl_maml.adapt(stepwise, (batch, batch)).policy.theta, one.policy.theta, atol=1e-14)
    with pytest.raises(ValueError, match="holds rates for 2 steps only"):
        mk.rl_maml.adapt(stepwise, (batch, batch, batch))

    policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 4, 1, jnp.tanh, key=KEY), 2)
    still = mk.inner.select.all_but(lambda policy: policy.log_std)
    task = mk.tasks.Navigation([0.3, 0.1], 5)
    for select, moves in ((mk.inner.select.everything, True), (still, False)):
        subject = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.1), select=select)
        adapted = mk.rl_maml.adapt(subject, mk.rl_maml.collect(subject, task, KEY).support)
        assert (jnp.abs(adapted.policy.log_std).max() > 0) == moves  # the noise adapts too, as published


def navigator(**options):
    policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 8, 1, jnp.tanh, key=KEY), 2)
    return mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.1), num_episodes=6, **options)


@pytest.mark.slow
def test_an_environment_is_what_is_collected_in_it():
    """A loss of other episodes than `collect` gives, and reports of others still."""
    subject, task = navigator(num_steps=2), mk.tasks.Navigation([0.3, 0.1], 5)
    data = mk.rl_maml.collect(subject, task, KEY)
    assert len(data.support) == 2
    loss = eqx.filter_jit(eqx.filter_value_and_grad(mk.rl_maml.meta_loss))
    for a, b in zip(jax.tree.leaves(loss(subject, task, KEY)), jax.tree.leaves(loss(subject, data)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    returns = mk.rl_maml.returns(subject, task, KEY)
    expected = [some.returns.mean() for some in (*data.support, data.query)]
    np.testing.assert_allclose(returns, expected, rtol=1e-12)
    report = mk.rl_maml.diagnostics(subject, task, KEY)
    np.testing.assert_allclose([report.return_before, report.return_after], [returns[0], returns[2]], rtol=1e-12)
    before, after = subject.policy, mk.rl_maml.adapt(subject, data.support).policy
    seen = data.support[0].observations
    kl = mk.rl.distributions(before, seen).divergence(mk.rl.distributions(after, seen))
    np.testing.assert_allclose(report.divergence, kl[data.support[0].mask].mean(), rtol=1e-12)
    # The second batch is the once adapted policy's own.
    once = mk.rl_maml.adapt(subject, data.support[0]).policy
    acted = data.support[1]
    np.testing.assert_allclose(
        mk.rl.distributions(once, acted.observations).log_prob(acted.actions), acted.log_probs, rtol=1e-9
    )


@pytest.mark.slow
def test_clipping_starts_where_the_policy_has_moved():
    """A clipped loss with another gradient on fresh data, or one that never clips."""
    plain, clipped = navigator(), navigator(outer="clipped")
    data = mk.rl_maml.collect(plain, mk.tasks.Navigation([0.3, 0.1], 5), KEY)
    gradient = eqx.filter_grad(mk.rl_maml.meta_loss)
    for a, b in zip(*(jax.tree.leaves(gradient(x, data).policy) for x in (plain, clipped)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    def moved(subject):
        return eqx.tree_at(lambda s: s.policy, subject, jax.tree.map(lambda p: p + 0.3, subject.policy))

    assert mk.rl_maml.meta_loss(moved(clipped), data) > mk.rl_maml.meta_loss(moved(plain), data) + 1e-6


def test_divergence_is_zero_at_home_and_curved():
    """A divergence in the other direction, or of the policies before adaptation."""
    subject = navigator()
    data = mk.rl_maml.collect(subject, mk.tasks.Navigation([0.3, 0.1], 5), KEY)
    value, slope = eqx.filter_value_and_grad(mk.rl_maml.divergence)(subject, data)
    assert abs(value) < 1e-12
    assert all(jnp.abs(leaf).max() < 1e-12 for leaf in jax.tree.leaves(slope.policy))
    other = eqx.tree_at(lambda s: s.policy.log_std, subject, jnp.array([0.3, -0.2]))
    now = mk.rl.distributions(mk.rl_maml.adapt(other, data.support).policy, data.query.observations)
    kl = data.query.behaviour.divergence(now)
    np.testing.assert_allclose(mk.rl_maml.divergence(other, data), kl[data.query.mask].mean(), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "outer", "num_steps"),
    [
        (mk.train.Epochs(3), "clipped", 40),
        (mk.train.step, "clipped", 120),
        (mk.train.TrustRegion(0.01), "ratio", 30),
    ],
    ids=["ppo", "step", "trpo"],
)
def test_meta_training_beats_the_untrained_policy(rule, outer, num_steps):
    """Everything at once: acting, adapting, and the loss on short walks, in PPO's epochs, in the common step and in
    trust region steps; disjoint 95 % intervals after adaptation."""
    tasks = mk.tasks.Navigations(horizon=6)
    policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 8, 1, jnp.tanh, key=KEY), 2)
    untrained = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.2), num_episodes=10, outer=outer)
    optimiser = optax.adam(1e-2)
    state = mk.train.init(untrained, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(mk.rl_maml, optimiser, state, tasks, num_steps=num_steps, meta_batch=10, rule=rule)

    def after(subject):
        scores = mk.evaluate.scores_of(
            eqx.Partial(mk.rl_maml.returns, subject), tasks, jax.random.key(2), num_tasks=200, chunk=None
        )
        return mk.evaluate.student_t(scores[:, 1])

    trained, start = after(state.learner), after(untrained)
    assert trained.low > start.high, f"{trained} is not above {start}"


make = functools.partial(mk.rl_maml.RLMAML, Softmax(THETA), inner=mk.inner.SGD(0.1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(num_episodes=0), ValueError, "num_episodes must be at least 1"),
        (lambda: make(num_steps=-1), ValueError, "num_steps must be at least 0"),
        (lambda: make(surrogate="dize"), ValueError, "surrogate='dize' is not known"),
        (lambda: make(outer="clip"), ValueError, "outer='clip' is not known"),
        (lambda: make(baseline="value"), ValueError, "baseline='value' is not known"),
        (lambda: make(discount=jnp.ones(3)), ValueError, "discount must be one number"),
        (lambda: make(inner=0.1), TypeError, "inner must be an mk.inner.AbstractSolver"),
        (lambda: mk.rl_maml.RLMAML(THETA, inner=mk.inner.SGD(0.1)), TypeError, "policy must be callable"),
        (lambda: mk.rl_maml.meta_loss(learner(), Fixed(PAYS)), ValueError, "rl_maml acts .* needs a key"),
        (lambda: mk.rl_maml.collect(learner(), Fixed(PAYS)), ValueError, "needs a key"),
        (lambda: mk.rl_maml.returns(learner(), Fixed(PAYS)), ValueError, "needs a key"),
        (lambda: mk.rl_maml.meta_loss(learner(), mk.tasks.Bandit([0.1, 0.2]), KEY), ValueError, "acts in Discrete"),
        (
            lambda: mk.rl_maml.adapt(
                mk.rl_maml.RLMAML(mk.nn.Linear(1, 3, key=KEY), inner=mk.inner.SGD(0.1)), (counted(PAYS),)
            ),
            TypeError,
            "must return an mk.rl distribution",
        ),
        (lambda: mk.rl_maml.predict(mk.rl_maml.adapt(navigator(), ()), jnp.ones((4, 3))), ValueError, "takes x of"),
    ],
)
def test_refused(call, error, message):
    """Nothing to act with, in or for."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("taken", "dtype", "message"),
    [
        (3, jnp.int32, r"an action of {} is not of Discrete\(size=3\): 3 in episode 1, step 0"),
        (-1, jnp.int32, "an action of {} is .* -1 in episode 1"),
        (0.5, jnp.float64, r"the actions of {}, of dtype float64 and shape \[8, 1\], are not of Discrete"),
    ],
)
@pytest.mark.parametrize("surrogate", ["ratio", "logp"])
def test_actions_out_of_range_are_refused(taken, dtype, message, surrogate):
    """Its probability is NaN, but not the gradient of that, and an inner loop looks at gradients alone: it went on as
    if the action had not been."""
    subject, batch = learner(surrogate=surrogate, standardise=True), counted(PAYS)
    wrong = eqx.tree_at(lambda b: b.actions, batch, batch.actions.astype(dtype).at[1].set(taken))
    loss = eqx.filter_jit(eqx.filter_value_and_grad(mk.rl_maml.meta_loss))
    for support, query, name in [
        ((wrong,), batch, "support"),
        ((batch, wrong), batch, r"support\[1\]"),
        ((batch,), wrong, "query"),
    ]:
        data = mk.rl_maml.Experience(support, query)
        with pytest.raises(ValueError, match=message.format(name)):
            mk.rl_maml.meta_loss(subject, data)
        if isinstance(taken, int):  # compiled, where nothing can raise
            value, gradient = loss(subject, data)
            assert jnp.isnan(value)
            assert jnp.isnan(gradient.policy.theta).all()
    with pytest.raises(ValueError, match=message.format("support")):
        mk.rl_maml.adapt(subject, wrong)
    if isinstance(taken, int):
        assert jnp.isnan(eqx.filter_jit(mk.rl_maml.adapt)(subject, (wrong,)).policy.theta).all()


def test_actions_of_steps_that_did_not_take_place_do_not_matter():
    """An episode that ended early is filled up with anything: a check that refused it would refuse good data."""
    subject, batch = learner(), counted(PAYS)
    ended = eqx.tree_at(lambda b: b.mask, batch, batch.mask.at[2].set(False))
    filled = eqx.tree_at(lambda b: b.actions, ended, batch.actions.at[2].set(7))
    adapted = [mk.rl_maml.adapt(subject, (b,)).policy.theta for b in (ended, filled)]
    np.testing.assert_array_equal(*adapted)
    assert jnp.isfinite(adapted[0]).all()
    for outer in ("ratio", "clipped"):
        loss = eqx.filter_value_and_grad(mk.rl_maml.meta_loss)
        found = [loss(learner(outer=outer), mk.rl_maml.Experience((batch,), b)) for b in (ended, filled)]
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_array_equal(one, other)
            assert jnp.isfinite(one).all()


def test_vectors_that_are_not_finite_are_refused():
    """A NaN that would be the policy's after one step."""
    subject = navigator()
    data = mk.rl_maml.collect(subject, mk.tasks.Navigation([0.3, 0.1], 5), KEY)
    wrong = eqx.tree_at(lambda b: b.actions, data.support[0], data.support[0].actions.at[1, 2, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"not of Continuous\(size=2\): \[ *nan .* in episode 1, step 2"):
        mk.rl_maml.adapt(subject, (wrong,))


class Untold(mk.rl.Categorical):
    """A distribution that does not say what it is over."""

    actions = None


def test_a_distribution_may_keep_its_actions_to_itself():
    """A check that takes every distribution for one of the two kinds."""

    class Policy(Softmax):
        def __call__(self, observations):
            return Untold(super().__call__(observations).logits)

    subject = mk.rl_maml.RLMAML(Policy(THETA), inner=mk.inner.SGD(0.1))
    assert jnp.isfinite(mk.rl_maml.meta_loss(subject, Fixed(PAYS), KEY))


@pytest.mark.parametrize("size", [1, 3])
def test_vectors_of_another_size_are_refused(size):
    """One number instead of two, which broadcasts."""
    subject = navigator()
    data = mk.rl_maml.collect(subject, mk.tasks.Navigation([0.3, 0.1], 5), KEY)
    wrong = eqx.tree_at(lambda b: b.actions, data.support[0], data.support[0].actions[..., :1].repeat(size, -1))
    with pytest.raises(ValueError, match=r"are not of Continuous\(size=2\)"):
        mk.rl_maml.adapt(subject, (wrong,))
    with pytest.raises(ValueError, match="2 numbers each, got shape"):
        data.query.behaviour.log_prob(wrong.actions)


def test_other_tasks_and_batches_are_refused():
    """An episode of supervised learning, which has no rewards; and batches that cannot be steps of one loop."""
    examples = mk.Examples(jnp.ones((2, 1)), jnp.ones((2, 1)))
    with pytest.raises((TypeError, ValueError)):
        mk.rl_maml.meta_loss(learner(), mk.Episode(examples, examples), KEY)
    shorter = jax.tree.map(lambda leaf: leaf[:4], counted(PAYS))
    with pytest.raises(ValueError, match="all batches of support must have the same shapes"):
        mk.rl_maml.adapt(learner(), (counted(PAYS), shorter))
    wider = eqx.tree_at(lambda b: b.actions, counted(PAYS), counted(PAYS).actions.astype(jnp.int64))
    message = (
        r"got int32\[8, 1\] in support\[0\]\.actions and int64\[8, 1\] in support\[2\]\.actions\. Collect each with"
    )
    with pytest.raises(ValueError, match=message):
        mk.rl_maml.adapt(learner(), (counted(PAYS), counted(PAYS), wider))
    untold = eqx.tree_at(lambda b: b.behaviour, counted(PAYS), Untold(counted(PAYS).behaviour.logits))
    with pytest.raises(ValueError, match=r"got behaviour Categorical in support\[0\] and Untold in support\[1\]"):
        mk.rl_maml.adapt(learner(), (counted(PAYS), untold))
    with pytest.raises(TypeError, match=r"support must be a tuple .* got Trajectories. One batch is \(batch,\)"):
        mk.rl_maml.Experience(counted(PAYS), counted(PAYS))
    with pytest.raises(TypeError, match=r"support\[0\] must be an mk.rl.Trajectories, got Examples"):
        mk.rl_maml.Experience((examples,), counted(PAYS))
    assert dataclasses.replace(learner(), num_episodes=3).num_episodes == 3
