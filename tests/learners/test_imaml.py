"""Implicit MAML, MAML with long inner loops, and what an adjoint that drops something may not do to a learner."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk
from metakit import inner, maml

KEYS = jax.random.split(jax.random.key(0), 6)


class Line(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return x @ self.weight


def examples(x_key, y_key, count):
    return mk.Examples(jax.random.normal(x_key, (count, 3)), jax.random.normal(y_key, (count, 1)))


EPISODE = mk.Episode(examples(KEYS[0], KEYS[1], 8), examples(KEYS[2], KEYS[3], 6))
MODEL = Line(jax.random.normal(KEYS[4], (3, 1)))


def line_learner(adjoint=None, pull=0.7, num_steps=300):
    adjoint = adjoint or inner.Implicit()
    options = {"inner": inner.SGD(0.1), "num_steps": num_steps, "loss": mk.losses.squared_error, "adjoint": adjoint}
    return maml.MAML(MODEL, proximal=mk.learned(pull), **options)


def test_linear_regression_in_closed_form():
    """Catches a pull of another strength, towards another point, or with the wrong gradient: φ* and the meta-gradient
    (I + H/λ)⁻¹ ∇L_Q(φ*) of a squared error, whose Hessian is twice the second moments (T20)."""
    pull = 0.7
    (xs, ys), (xq, yq) = ((e.x, e.y) for e in (EPISODE.support, EPISODE.query))
    hessian = 2 * xs.T @ xs / len(xs)
    phi = np.linalg.solve(hessian + pull * np.eye(3), 2 * xs.T @ ys / len(xs) + pull * MODEL.weight)
    slope = 2 * xq.T @ (xq @ phi - yq) / len(xq)
    learner = line_learner()
    np.testing.assert_allclose(maml.adapt(learner, EPISODE.support).model.weight, phi, atol=1e-9)
    gradient = eqx.filter_grad(maml.meta_loss)(learner, EPISODE)
    np.testing.assert_allclose(gradient.model.weight, np.linalg.solve(np.eye(3) + hessian / pull, slope), atol=1e-9)
    by_pull = np.sum(slope * np.linalg.solve(hessian + pull * np.eye(3), MODEL.weight - phi))
    np.testing.assert_allclose(gradient.proximal.value, by_pull, atol=1e-9)


TASK = mk.tasks.Sinusoid(shot=5, queries=5)


def test_the_published_settings_and_the_residual():
    """Catches defaults that drift: λ = 2, five conjugate-gradient steps, no check of convergence; and a residual that
    is not reported."""
    learner = maml.imaml(MODEL, inner=inner.SGD(0.1), num_steps=16, loss=mk.losses.squared_error)
    assert learner.adjoint.linear_solver.max_steps == 5
    assert learner.adjoint.tolerance is None
    assert (float(learner.proximal.value), learner.proximal.learned) == (2.0, False)
    residuals = [float(maml.diagnostics(maml.with_num_steps(learner, n), EPISODE).residual) for n in (1, 16)]
    assert residuals[0] > 10 * residuals[1] > 0
    exact = maml.MAML(learner.model, inner=inner.SGD(0.1), num_steps=1, loss=mk.losses.squared_error)
    assert maml.diagnostics(exact, EPISODE).residual is None


@pytest.mark.slow
def test_the_losses_of_diagnostics_hold_the_pull_throughout():
    """Catches a last inner loss without the proximal term, which would seem to drop at the end."""
    losses = maml.diagnostics(line_learner(), EPISODE).inner_losses
    np.testing.assert_allclose(losses[-1], losses[-2], rtol=1e-12)
    assert float(losses[-1]) < float(losses[0])


def test_without_the_pull_at_test_time():
    """Catches a learner that cannot be tested as the paper tests: the proximal term taken out."""
    free = dataclasses.replace(line_learner(), proximal=None)
    plain = maml.MAML(MODEL, inner=inner.SGD(0.1), num_steps=300, loss=mk.losses.squared_error)
    np.testing.assert_allclose(
        maml.adapt(free, EPISODE.support).model.weight, maml.adapt(plain, EPISODE.support).model.weight
    )


@pytest.mark.slow
@pytest.mark.optimised
def test_a_hundred_and_more_steps_by_any_exact_adjoint():
    """Catches an adjoint that MAML cannot use: one meta-gradient, initialisation and momentum, five ways."""
    model = mk.nn.MLP(1, 1, 4, 1, jnp.tanh, key=jax.random.key(0))
    solver = inner.Momentum(mk.learned(0.01), mk.learned(0.5))
    episode = TASK(jax.random.key(1))

    def gradient(adjoint):
        learner = maml.MAML(model, inner=solver, num_steps=7, loss=mk.losses.squared_error, adjoint=adjoint)
        return jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(maml.meta_loss))(learner, episode))

    expected = gradient(inner.Unrolled())
    others = [inner.Reversible(), inner.Forward(), inner.Truncated(7), inner.MixedMode(checkpointed=True), "auto"]
    for adjoint in others:
        for a, b in zip(gradient(adjoint), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.optimised
def test_step_weights_by_reversible():
    """Catches query losses after each step that lose their gradient in the restored loop."""
    model = mk.nn.MLP(1, 1, 4, 1, jnp.tanh, key=jax.random.key(0))

    def gradient(adjoint):
        learner = maml.MAML(
            model,
            inner=inner.Momentum(0.01, 0.5),
            num_steps=3,
            loss=mk.losses.squared_error,
            adjoint=adjoint,
            step_weights=jnp.asarray([0.2, 0.3, 0.5]),
        )
        return jax.tree.leaves(eqx.filter_grad(maml.meta_loss)(learner, TASK(jax.random.key(1))))

    for a, b in zip(gradient(inner.Reversible()), gradient(inner.Unrolled()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_auto_says_what_it_would_choose():
    """Catches a choice by another loop than the learner's."""
    learner = maml.MAML(MODEL, inner=inner.SGD(0.1), num_steps=300, loss=mk.losses.squared_error, adjoint="auto")
    assert isinstance(learner.adjoint, inner.Auto)
    assert isinstance(maml.with_adjoint(line_learner(), "auto").adjoint, inner.Auto)
    choice = maml.choose_adjoint(learner, EPISODE.support)
    assert isinstance(choice.adjoint, inner.MixedMode)
    assert choice.reason.startswith("300 steps of SGD on 3 parameters: MixedMode, as it keeps the state of every step")
    assert maml.choose_adjoint(learner, EPISODE.support, memory_limit=3000).adjoint.checkpointed


def learner_with(adjoint, **options):
    settings = {"inner": inner.SGD(0.1), "num_steps": 4, "loss": mk.losses.squared_error, **options}
    return maml.MAML(MODEL, adjoint=adjoint, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learner_with(inner.Implicit(tolerance=None)), r"no gradient with respect to params"),
        (lambda: learner_with(inner.Truncated(3)), r"no gradient with respect to params after num_steps=4"),
        (
            lambda: learner_with(inner.Implicit(tolerance=None), proximal=1.0, inner=inner.SGD(mk.learned(0.1))),
            r"no gradient with respect to solver",
        ),
        (
            lambda: learner_with(inner.Implicit(tolerance=None), proximal=1.0, step_weights=jnp.ones(4) / 4),
            r"the minimum, not the path.*step_weights",
        ),
        (lambda: learner_with(inner.Implicit(), proximal=1.0), r"not converged after 4 steps"),
        (lambda: learner_with(inner.Reversible()), r"cannot undo the steps of SGD"),
        (lambda: learner_with(None, proximal=jnp.ones(2)), r"proximal must be one number, got shape \[2\]"),
        (lambda: learner_with(inner.FirstOrder(), proximal=mk.learned(2.0)), r"proximal is learned, but FirstOrder"),
        (lambda: learner_with(inner.Unrolled(), proximal=0.0), r"proximal must be a finite number above 0, got 0"),
        (
            lambda: maml.imaml(MODEL, inner=inner.SGD(0.1), num_steps=2, proximal=-1.0),
            r"proximal must be .* above 0, got -1",
        ),
    ],
    ids=["implicit", "truncated", "learned_rate", "step_weights", "unfinished", "sgd", "shape", "dropped", "0", "-1"],
)
def test_a_learner_whose_adjoint_drops_what_it_learns_is_refused(make, message):
    """Catches a learner that trains without an error and never learns: a meta-gradient of zero."""
    with pytest.raises(ValueError, match=message):
        eqx.filter_grad(maml.meta_loss)(make(), EPISODE)


def test_such_a_learner_still_adapts():
    """Catches a refusal where no gradient is taken: evaluation at more steps than the adjoint differentiates."""
    learner = maml.with_num_steps(learner_with(inner.Truncated(4)), 10)
    assert maml.path(learner, EPISODE.support, num_steps=12).model.weight.shape == (13, 3, 1)
    assert bool(jnp.isfinite(maml.meta_loss(learner, EPISODE)))


@pytest.mark.slow
def test_meta_training_beats_the_untrained_self():
    """Catches a meta-gradient that does not train: lines y = ax + b with a, b ~ N(0, 1) from a slope of 3, to which the
    pull holds what has not been meta-trained; disjoint 95 % intervals."""
    tasks = mk.tasks.LinearRegression(shot=5, queries=20)
    learner = maml.imaml(Line(jnp.full((1, 1), 3.0)), inner=inner.SGD(0.1), num_steps=40, loss=mk.losses.squared_error)
    optimiser = optax.adam(0.05)
    state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    state, _ = mk.train.run_steps(maml, optimiser, state, tasks, num_steps=200, meta_batch=16)

    def error(learner):
        metrics = {"error": mk.metrics.mean_squared_error}
        scores = mk.evaluate.scores(maml, learner, tasks, jax.random.key(9), num_tasks=1000, metrics=metrics)
        return mk.evaluate.student_t(scores["error"])

    before, after = error(learner), error(state.learner)
    assert after.high < before.low, (before, after)
    assert abs(float(state.learner.model.weight[0, 0])) < 0.5
