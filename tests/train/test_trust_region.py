"""Steps that act once and use what they collected: trust regions against closed forms, and PPO's epochs."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

KEY = jax.random.key(0)
METRIC = jnp.array([[2.0, 0.3], [0.3, 0.5]])
START = jnp.array([1.0, -2.0])
IDENTITY = optax.identity()


class Point(eqx.Module):
    position: jax.Array
    still: mk.Hyperparameter

    def __init__(self, position=START):
        self.position = position
        self.still = mk.fixed(3.0)


class Toy(NamedTuple):
    adapt: Any
    predict: Any
    collect: Any
    meta_loss: Any
    divergence: Any


def toy(loss, divergence):
    """An algorithm whose data are a task's slope and where the learner was."""
    return Toy(
        adapt=None,
        predict=None,
        collect=lambda learner, task, key: (task, learner.position),
        meta_loss=lambda learner, data, key=None: loss(learner.position, *data),
        divergence=lambda learner, data: divergence(learner.position - data[1]),
    )


def linear(position, slope, origin):
    return position @ slope


def quadratic(moved):
    return 0.5 * moved @ METRIC @ moved


SLOPES = jnp.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.6]])
SLOPE = SLOPES.mean(0)


def start(optimiser=IDENTITY, learner=None):
    return mk.train.init(Point() if learner is None else learner, optimiser, key=jax.random.key(7))


def closed_form(max_divergence, damping):
    direction = np.linalg.solve(METRIC + damping * np.eye(2), SLOPE)
    return -np.sqrt(2 * max_divergence / (SLOPE @ direction)) * direction


@pytest.mark.parametrize(("max_divergence", "damping"), [(0.01, 1e-5), (0.3, 0.7)])
def test_the_step_is_the_closed_form(max_divergence, damping):
    """A plain gradient, a region of twice the size, or a damping that is left out. Loss linear, divergence quadratic:

    the step is -sqrt(2δ / gᵀ(M + λ)⁻¹g) (M + λ)⁻¹ g, taken whole since its divergence is within δ.
    """
    rule = mk.train.TrustRegion(max_divergence, damping=damping)
    state, diagnostics = rule(toy(linear, quadratic), IDENTITY, start(), SLOPES)
    step = closed_form(max_divergence, damping)
    np.testing.assert_allclose(state.learner.position, START + step, rtol=1e-9)
    assert state.learner.still.value == 3.0
    assert int(state.step) == 1
    details = diagnostics.details
    assert int(details.backtracks) == 0
    np.testing.assert_allclose(details.divergence, 0.5 * step @ METRIC @ step, rtol=1e-9)
    np.testing.assert_allclose(details.improvement, -(step @ SLOPE), rtol=1e-9)
    np.testing.assert_allclose(diagnostics.gradient_norm, np.linalg.norm(SLOPE), rtol=1e-12)


def test_the_line_search_takes_the_first_length_that_will_do():
    """A search that halves, stops one too early, or looks at the loss alone."""

    def steeper(moved):
        return quadratic(moved) * (1 + 40 * moved @ moved)

    rule = mk.train.TrustRegion(0.1, damping=0.0)
    state, diagnostics = rule(toy(linear, steeper), IDENTITY, start(), SLOPES)
    step, j = closed_form(0.1, 0.0), 0
    while steeper(0.8**j * step) > 0.1:
        j += 1
    assert j >= 3
    assert int(diagnostics.details.backtracks) == j
    np.testing.assert_allclose(state.learner.position, START + 0.8**j * step, rtol=1e-9)


def test_no_length_will_do():
    """A step that is taken although the loss rises: here it does in every direction, whatever the gradient says."""

    def lying(position, slope, origin):
        there = position - origin
        return there @ slope - jax.lax.stop_gradient(there @ slope) + jax.lax.stop_gradient(there @ there)

    state, diagnostics = mk.train.TrustRegion()(toy(lying, quadratic), IDENTITY, start(), SLOPES)
    np.testing.assert_array_equal(state.learner.position, START)
    assert int(diagnostics.details.backtracks) == 16
    assert (float(diagnostics.details.divergence), float(diagnostics.details.improvement)) == (0, 0)
    assert diagnostics.finite
    assert int(state.step) == 1


def test_a_gradient_of_zero_is_no_step():
    """0 / 0 in the length of the step."""
    state, diagnostics = mk.train.TrustRegion()(toy(linear, quadratic), IDENTITY, start(), jnp.zeros((3, 2)))
    np.testing.assert_array_equal(state.learner.position, START)
    assert diagnostics.finite


def test_a_step_that_is_not_finite_is_not_taken():
    """A learner full of NaN."""
    broken = SLOPES.at[0].set(jnp.nan)
    for rule in (mk.train.TrustRegion(), mk.train.Epochs(2)):
        state, diagnostics = rule(toy(linear, quadratic), IDENTITY, start(), broken)
        assert not diagnostics.finite
        np.testing.assert_array_equal(state.learner.position, START)
        assert int(state.step) == 0
        with pytest.raises(mk.train.NonFiniteLossError):
            mk.train.run_steps(
                toy(linear, quadratic),
                IDENTITY,
                start(),
                lambda key: jnp.full((2,), jnp.nan),
                num_steps=2,
                meta_batch=2,
                rule=rule,
            )


class Softmax(eqx.Module):
    theta: jax.Array

    def __call__(self, observations):
        return mk.rl.Categorical(jnp.broadcast_to(self.theta[None], (len(observations), len(self.theta))))


def bandit_learner():
    policy = Softmax(jnp.array([0.3, -0.2]))
    return mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.5), num_episodes=10, baseline="none", standardise=False)


def collected(state, tasks):
    """What a step on `tasks` collects, and its mean loss and divergence as functions of the policy's logits."""
    keys = mk.random.task_keys(jax.random.split(jax.random.fold_in(state.key, state.step))[1], 0, 3)
    data = eqx.filter_vmap(mk.rl_maml.collect, in_axes=(None, 0, 0))(state.learner, tasks, keys)

    def mean(function):
        def of(theta):
            learner = eqx.tree_at(lambda l: l.policy.theta, state.learner, theta)
            return eqx.filter_vmap(function, in_axes=(None, 0))(learner, data).mean()

        return of

    return mean(mk.rl_maml.meta_loss), mean(mk.rl_maml.divergence)


@pytest.mark.slow
def test_the_trust_region_is_about_the_adapted_policies():
    """Curvature of the policy before adaptation, or without the inner step's derivative; by the whole Hessian."""
    state = start(learner=bandit_learner())
    tasks = mk.train.draw_tasks(mk.tasks.Bandits(2), state, meta_batch=3)
    after, diagnostics = mk.train.TrustRegion(damping=0.01)(mk.rl_maml, IDENTITY, state, tasks)
    loss, divergence = collected(state, tasks)
    theta = state.learner.policy.theta
    gradient = jax.grad(loss)(theta)
    curved = jax.hessian(divergence)(theta) + 0.01 * jnp.eye(2)
    direction = jnp.linalg.solve(curved, gradient)
    step = -jnp.sqrt(2 * 0.01 / (gradient @ direction)) * direction
    shortened = 0.8 ** int(diagnostics.details.backtracks)
    np.testing.assert_allclose(after.learner.policy.theta, theta + shortened * step, rtol=1e-6)
    moved = after.learner.policy.theta
    np.testing.assert_allclose(diagnostics.details.divergence, divergence(moved), rtol=1e-6)
    np.testing.assert_allclose(diagnostics.details.improvement, loss(theta) - loss(moved), rtol=1e-6)


@pytest.mark.slow
def test_two_devices_and_single_tasks_equal_all_at_once():
    """Curvature summed over devices instead of averaged, or tasks of one chunk that forget the others."""
    state = start(learner=bandit_learner())
    tasks = mk.train.draw_tasks(mk.tasks.Bandits(2), state, meta_batch=4)
    for rule in (mk.train.TrustRegion(damping=0.01), mk.train.Epochs(2)):
        optimiser = optax.sgd(0.1)
        fresh = start(optimiser, bandit_learner())
        expected, _ = rule(mk.rl_maml, optimiser, fresh, tasks)
        for options in ({"chunk": 1}, {"mesh": mk.sharding.task_mesh(2)}):
            found, _ = rule(mk.rl_maml, optimiser, fresh, tasks, **options)
            np.testing.assert_allclose(found.learner.policy.theta, expected.learner.policy.theta, rtol=1e-9)
        # In a loop the state lives on the mesh, where what a function closes over cannot be read.
        loop = functools.partial(mk.train.run_steps, mk.rl_maml, optimiser, num_steps=2, meta_batch=4, rule=rule)
        alone, spread = (
            loop(start(optimiser, bandit_learner()), mk.tasks.Bandits(2), mesh=mesh)[0].learner.policy.theta
            for mesh in (None, mk.sharding.task_mesh(2))
        )
        np.testing.assert_allclose(spread, alone, rtol=1e-9)


@pytest.mark.slow
def test_epochs_are_steps_on_the_same_data():
    """Data collected anew in each epoch, an optimiser that is restarted, or a count of epochs where steps are meant."""
    optimiser = optax.adam(0.05)
    state = start(optimiser, bandit_learner())
    tasks = mk.train.draw_tasks(mk.tasks.Bandits(2), state, meta_batch=3)
    loss, divergence = collected(state, tasks)
    theta = state.learner.policy.theta
    opt_state, moved = optimiser.init(theta), theta
    for _ in range(3):
        with jax.numpy_dtype_promotion("standard"):
            update, opt_state = optimiser.update(jax.grad(loss)(moved), opt_state, moved)
        moved = moved + update
    after, diagnostics = mk.train.Epochs(3)(mk.rl_maml, optimiser, state, tasks)
    np.testing.assert_allclose(after.learner.policy.theta, moved, rtol=1e-9)
    np.testing.assert_allclose(diagnostics.loss, loss(theta), rtol=1e-9)
    np.testing.assert_allclose(diagnostics.details.divergence, divergence(moved), rtol=1e-9)
    assert int(after.step) == 1
    # One epoch is the common step.
    twice = []
    for rule in (mk.train.Epochs(1), mk.train.step):
        one, _ = rule(mk.rl_maml, optimiser, state, tasks)
        two, _ = rule(mk.rl_maml, optimiser, one, tasks)
        twice.append(two.learner.policy.theta)
    np.testing.assert_allclose(*twice, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [mk.train.TrustRegion(0.02), mk.train.Epochs(2), mk.train.step])
def test_many_steps_are_the_loop_of_single_ones(rule):
    """A rule that `run_steps` and `fit` drop on the way, or keys that are used twice."""
    optimiser = optax.adam(0.05)
    bandits = mk.tasks.Bandits(2)
    looped = start(optimiser, bandit_learner())
    for _ in range(3):
        tasks = mk.train.draw_tasks(bandits, looped, meta_batch=2)
        looped, _ = rule(mk.rl_maml, optimiser, looped, tasks)
    many, diagnostics = mk.train.run_steps(
        mk.rl_maml, optimiser, start(optimiser, bandit_learner()), bandits, num_steps=3, meta_batch=2, rule=rule
    )
    np.testing.assert_allclose(many.learner.policy.theta, looped.learner.policy.theta, rtol=1e-8)
    assert diagnostics.loss.shape == (3,)
    fitted = mk.train.fit(
        mk.rl_maml, optimiser, start(optimiser, bandit_learner()), bandits, num_steps=3, meta_batch=2, rule=rule
    )
    np.testing.assert_allclose(fitted.state.learner.policy.theta, many.learner.policy.theta, rtol=1e-12)


def test_another_region_is_no_other_program():
    """Numbers of a rule that are part of the program, so that each schedule of them compiles again."""
    traces = 0

    def counted(position, slope, origin):
        nonlocal traces
        traces += 1
        return linear(position, slope, origin)

    algorithm = toy(counted, quadratic)
    mk.train.TrustRegion(0.01)(algorithm, IDENTITY, start(), SLOPES)
    before = traces
    mk.train.TrustRegion(0.02)(algorithm, IDENTITY, start(), SLOPES)
    assert traces == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mk.train.TrustRegion(0.0), ValueError, "max_divergence must be above 0"),
        (lambda: mk.train.TrustRegion(damping=-1.0), ValueError, "damping must be at least 0"),
        (lambda: mk.train.TrustRegion(backtrack=1.0), ValueError, "backtrack must be between 0 and 1"),
        (lambda: mk.train.TrustRegion(num_iterations=0), ValueError, "num_iterations must be at least 1"),
        (lambda: mk.train.TrustRegion(max_backtracks=-1), ValueError, "max_backtracks must be at least 0"),
        (lambda: mk.train.Epochs(0), ValueError, "num_epochs is the gradient steps .* at least 1, got 0"),
        (lambda: mk.train.TrustRegion()(mk.maml, IDENTITY, start(), SLOPES), TypeError, "metakit.learners.maml lacks"),
        (lambda: mk.train.Epochs()(mk.maml, IDENTITY, start(), SLOPES), TypeError, "Epochs needs an algorithm with"),
    ],
)
def test_refused(call, error, message):
    """Regions of no size, and algorithms that cannot say how far they moved."""
    with pytest.raises(error, match=message):
        call()
