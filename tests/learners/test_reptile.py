"""Reptile: its update, its minibatches, whose statistics it predicts with, and bad input."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk
from metakit import reptile
from metakit.learners._minibatches import minibatches


def regression(key, n=6):
    keys = jax.random.split(key, 2)
    x = jax.random.normal(keys[0], (2 * n, 2))
    y = jnp.tanh(x @ jax.random.normal(keys[1], (2, 1)))
    return mk.Episode(mk.Examples(x[:n], y[:n]), mk.Examples(x[n:], y[n:]))


def classification(key, way=3, shot=2, queries=3):
    keys = jax.random.split(key, 2)
    y = jnp.tile(jnp.arange(way), shot + queries)
    x = jax.random.normal(keys[0], (way, 4))[y] + 0.3 * jax.random.normal(keys[1], (len(y), 4))
    cut = way * shot
    return mk.Episode(mk.Examples(x[:cut], y[:cut], way=way), mk.Examples(x[cut:], y[cut:], way=way))


def regressor(**options):
    options = {"inner": mk.inner.SGD(0.1), "num_steps": 3, "loss": mk.losses.squared_error, **options}
    return reptile.Reptile(mk.nn.MLP(2, 1, 5, 1, jnp.tanh, key=jax.random.key(0)), **options)


class NormNet(eqx.Module):
    body: mk.nn.Linear
    norm: eqx.Module
    head: mk.nn.Linear

    def __init__(self, way=3):
        self.body = mk.nn.Linear(4, 6, key=jax.random.key(1))
        self.norm = mk.nn.BatchStatNorm(6)
        self.head = mk.nn.Linear(6, way, key=jax.random.key(2))

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.body(x))))


def classifier(**options):
    return reptile.Reptile(NormNet(), **{"inner": mk.inner.SGD(0.3), "num_steps": 2, **options})


def loss_of(model, examples):
    return mk.losses.squared_error(model(examples.x), examples.y, reduction="mean")


def rows_of(examples, rows):
    return mk.Examples(examples.x[rows], examples.y[rows], way=examples.way)


def assert_close(actual, expected, rtol=1e-12, atol=1e-15):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def minus(a, b):
    return jax.tree.map(jnp.subtract, a, b)


# The update


def test_the_gradient_is_the_update_and_the_value_the_query_loss():
    """Catches a surrogate whose gradient has a factor, a wrong sign or an inner derivative in it."""
    learner, task, key = regressor(batch_size=2), regression(jax.random.key(1)), jax.random.key(2)
    value, gradient = eqx.filter_value_and_grad(reptile.meta_loss)(learner, task, key)
    adapted = reptile.adapt(learner, task.support, key)
    assert_close(gradient.model, minus(learner.model, adapted.model), rtol=0, atol=0)
    np.testing.assert_allclose(value, loss_of(adapted.model, task.query), rtol=1e-14)
    assert float(jnp.abs(gradient.model.head.weight).max()) > 1e-3
    assert gradient.inner.rate.value == 0.0


def test_it_is_the_loop_written_by_hand():
    """Catches a batch used twice, steps taken from the start, or a solver that starts afresh at every step."""
    inner = mk.inner.Optax(optax.adam, learning_rate=0.1, b1=0.0, eps_root=1e-16)
    learner, task, key = (
        regressor(inner=inner, batch_size=4, num_steps=5),
        regression(jax.random.key(1)),
        jax.random.key(2),
    )
    optimiser = optax.adam(0.1, b1=0.0, eps_root=1e-16)
    model, losses = learner.model, []
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    for rows in minibatches(key, 6, 4, 5):
        loss, gradient = eqx.filter_value_and_grad(loss_of)(model, rows_of(task.support, rows))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(gradient, state)
        model = eqx.apply_updates(model, updates)
        losses.append(loss)
    assert_close(reptile.adapt(learner, task.support, key).model, model, rtol=1e-10)
    found = reptile.diagnostics(learner, task, key)
    np.testing.assert_allclose(found.inner_losses, losses, rtol=1e-10)
    np.testing.assert_allclose(found.query_loss_before, loss_of(learner.model, task.query), rtol=1e-12)
    np.testing.assert_allclose(found.query_loss_after, loss_of(model, task.query), rtol=1e-10)
    moved = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(minus(learner.model, model)))
    np.testing.assert_allclose(found.distance, np.sqrt(moved), rtol=1e-10)


def test_one_step_is_joint_training():
    """Catches any difference from the plain gradient of the mean loss over tasks where k = 1: it must be none."""
    learner = regressor(num_steps=1)
    tasks = eqx.filter_vmap(regression)(jax.random.split(jax.random.key(1), 4))

    def joint(model):
        return jnp.mean(eqx.filter_vmap(loss_of, in_axes=(None, 0))(model, tasks.support))

    step = mk.sharding.meta_gradient(reptile, learner, tasks, trainable=mk.trainable(learner)).gradient
    assert_close(jax.tree.map(lambda leaf: leaf / 0.1, step.model), eqx.filter_grad(joint)(learner.model), rtol=1e-9)


class Quadratic(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return x * 0 + self.w


@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_the_update_of_a_quadratic(num_steps):
    """Catches a step too few or too many: (w - c)^2 from w = 3 to c = 1 leaves (1 - 2 a)^k of the way."""
    learner = reptile.Reptile(
        Quadratic(jnp.asarray(3.0)), inner=mk.inner.SGD(0.1), num_steps=num_steps, loss=mk.losses.squared_error
    )
    examples = mk.Examples(jnp.zeros((2, 1)), jnp.ones((2, 1)))
    gradient = eqx.filter_grad(reptile.meta_loss)(learner, mk.Episode(examples, examples))
    np.testing.assert_allclose(gradient.model.w, 2 * (1 - 0.8**num_steps), rtol=1e-12)


def test_the_expansion_in_a_small_rate():
    """Catches a second batch whose gradient is taken at the start: T6,
    (theta - phi_2) / a = g1 + g2 - a H2 g1 + O(a^2).

    The remainder must shrink 100 times where the rate shrinks 10 times, and without the Hessian's term only 10 times.
    """
    task, key = regression(jax.random.key(1)), jax.random.key(2)
    first, second = (rows_of(task.support, rows) for rows in minibatches(key, 6, 3, 2))
    model = regressor().model
    g1, g2 = (eqx.filter_grad(loss_of)(model, part) for part in (first, second))
    h2g1 = jax.jvp(lambda m: eqx.filter_grad(loss_of)(m, second), (model,), (g1,))[1]

    def remainders(rate):
        learner = regressor(inner=mk.inner.SGD(rate), num_steps=2, batch_size=3)
        gradient = eqx.filter_grad(reptile.meta_loss)(learner, task, key).model
        total = jax.tree.map(lambda leaf, a, b: leaf / rate - a - b, gradient, g1, g2)
        with_hessian = jax.tree.map(lambda leaf, h: leaf + rate * h, total, h2g1)
        return [max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(t)) for t in (with_hessian, total)]

    large, small = remainders(1e-2), remainders(1e-3)
    assert 80 < large[0] / small[0] < 125
    assert 8 < large[1] / small[1] < 12.5


def test_the_common_step_moves_towards_the_mean_of_the_tasks():
    """Catches an outer update of the wrong size: theta + rate * mean(phi - theta), the published schedule included."""
    learner = regressor(batch_size=2)
    outer = optax.sgd(optax.linear_schedule(1.0, 0.0, 4))
    state = mk.train.init(learner, outer, key=jax.random.key(3))
    for rate in (1.0, 0.75):
        tasks = mk.train.draw_tasks(regression, state, meta_batch=3)
        keys = mk.random.task_keys(jax.random.split(jax.random.fold_in(state.key, state.step))[1], 0, 3)
        adapted = eqx.filter_vmap(reptile.adapt, in_axes=(None, 0, 0))(state.learner, tasks.support, keys).model
        towards = jax.tree.map(
            lambda theta, phi, e=rate: theta + e * jnp.mean(phi - theta[None], 0), state.learner.model, adapted
        )
        state, _ = mk.train.step(reptile, outer, state, tasks)
        assert_close(state.learner.model, towards, rtol=1e-10)
    assert state.learner.inner.rate.value == 0.1


def test_leaves_that_are_not_selected_stay():
    """Catches a frozen body that adapts, or that the outer step moves."""
    learner, task = regressor(select=mk.inner.select.head_only), regression(jax.random.key(1))
    adapted = reptile.adapt(learner, task.support).model
    np.testing.assert_array_equal(adapted.hidden[0].weight, learner.model.hidden[0].weight)
    gradient = eqx.filter_grad(reptile.meta_loss)(learner, task).model
    assert not gradient.hidden[0].weight.any()
    assert gradient.head.weight.any()


def test_frozen_statistics_are_neither_adapted_nor_trained():
    """Catches running statistics that the inner loop or the update drifts away."""
    model = mk.nn.freeze_statistics(NormNet(), jax.random.normal(jax.random.key(9), (20, 4)))
    learner = reptile.Reptile(model, inner=mk.inner.SGD(0.3), num_steps=2)
    gradient = eqx.filter_grad(reptile.meta_loss)(learner, classification(jax.random.key(1))).model
    assert not gradient.norm.statistics.mean.any()
    assert gradient.norm.scale.any()


# The solver's state


def test_a_carried_state_lives_on():
    """Catches moments that start afresh: after a step of rate 1 the state is the mean of where the tasks left it."""
    inner = mk.inner.Optax(optax.rmsprop, learning_rate=0.1, decay=0.9, initial_scale=0.1)
    learner = reptile.with_carried_state(regressor(inner=inner))
    outer = optax.sgd(1.0)
    state = mk.train.init(learner, outer, key=jax.random.key(3))
    for _ in range(2):
        before = state.learner
        tasks = mk.train.draw_tasks(regression, state, meta_batch=2)

        def final_moments(examples, before=before):
            model, nu = before.model, before.state[0].nu
            for _ in range(3):
                gradient = eqx.filter_grad(loss_of)(model, examples)
                nu = jax.tree.map(lambda n, g: 0.9 * n + 0.1 * g**2, nu, gradient)
                model = jax.tree.map(lambda p, g, n: p - 0.1 * g / jnp.sqrt(n + 1e-8), model, gradient, nu)
            return model, nu

        model, nu = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), eqx.filter_vmap(final_moments)(tasks.support))
        state, _ = mk.train.step(reptile, outer, state, tasks)
        assert_close(state.learner.state[0].nu, nu, rtol=1e-9)
        assert_close(state.learner.model, model, rtol=1e-9)
    assert float(jnp.abs(state.learner.state[0].nu.head.weight - 0.1).max()) > 1e-3


# Minibatches


@pytest.mark.parametrize(("n", "batch_size", "num_steps"), [(6, 2, 7), (5, 3, 4), (3, 7, 2), (4, 4, 3), (5, 2, 0)])
def test_minibatches_cycle_without_replacement(n, batch_size, num_steps):
    """Catches draws with replacement, and a last short batch that is dropped: n rows in a row hold each row once."""
    rows = minibatches(jax.random.key(0), n, batch_size, num_steps)
    assert rows.shape == (num_steps, batch_size)
    flat = np.asarray(rows).reshape(-1)
    for start in range(0, len(flat), n):
        piece = flat[start : start + n]
        assert len(set(piece)) == len(piece)
        assert set(piece) <= set(range(n))


def test_each_pass_has_an_order_of_its_own():
    """Catches one permutation used for every pass, or the same for every key."""
    passes = np.asarray(minibatches(jax.random.key(0), 8, 8, 5))
    assert len({tuple(order) for order in passes}) == 5
    other = np.asarray(minibatches(jax.random.key(1), 8, 8, 5))
    assert (passes != other).any()


def test_batches_of_everything_are_no_batches():
    """Catches rows lost in a batch that holds the whole support set, or more than it."""
    task = regression(jax.random.key(1))
    whole = reptile.adapt(regressor(), task.support).model
    for size in (6, 12):
        adapted = reptile.adapt(regressor(batch_size=size), task.support, jax.random.key(2)).model
        assert_close(adapted, whole, rtol=1e-10)


# Batch norm


def test_the_norm_policy_decides_whether_queries_see_each_other():
    """Catches transductive statistics under another name, and a policy that predicts as another does."""
    task, outputs = classification(jax.random.key(1)), {}
    for policy, independent in (("inductive", True), ("one_by_one", True), ("transductive", False)):
        adapted = reptile.adapt(classifier(norm_policy=policy), task.support)
        outputs[policy] = reptile.predict(adapted, task.query.x)
        one = reptile.predict(adapted, task.query.x[:1])
        difference = float(jnp.abs(outputs[policy][:1] - one).max())
        assert difference < 1e-12 if independent else difference > 1e-3
    first, *others = outputs.values()
    assert all(float(jnp.abs(first - other).max()) > 1e-3 for other in others)


def test_inductive_and_one_by_one_are_what_they_say():
    """Catches statistics of the initial weights, of the last minibatch, or of the query twice."""
    task = classification(jax.random.key(1))
    model = reptile.adapt(classifier(), task.support).model
    inductive = reptile.predict(reptile.adapt(classifier(norm_policy="inductive"), task.support), task.query.x)
    hidden = model.body(task.support.x)
    mean, variance = hidden.mean(0), hidden.var(0)
    normed = (model.body(task.query.x) - mean[None]) / jnp.sqrt(variance + 1e-5)[None]
    expected = model.head(jnp.tanh(normed * model.norm.scale[None] + model.norm.bias[None]))
    np.testing.assert_allclose(inductive, expected, rtol=1e-9)

    one_by_one = reptile.predict(reptile.adapt(classifier(norm_policy="one_by_one"), task.support), task.query.x)
    for i, query in enumerate(task.query.x):
        alone = model(jnp.concatenate([task.support.x, query[None]]))[-1]
        np.testing.assert_allclose(one_by_one[i], alone, rtol=1e-10)


# Training


def test_training_helps():
    """Catches an update in the wrong direction: the 95 % intervals after adapting must be disjoint."""
    model = mk.nn.MLP(1, 1, 32, 1, jnp.tanh, key=jax.random.key(0))
    learner = reptile.Reptile(model, inner=mk.inner.SGD(0.02), num_steps=8, batch_size=10, loss=mk.losses.squared_error)
    outer = optax.sgd(optax.linear_schedule(1.0, 0.0, 300))
    state = mk.train.init(learner, outer, key=jax.random.key(1))
    tasks = mk.tasks.Sinusoid(shot=20, queries=10)
    trained = mk.train.run_steps(reptile, outer, state, tasks, num_steps=300, meta_batch=5)[0].learner

    def interval(learner):
        learner = reptile.with_num_steps(learner, 32)
        metrics = {"error": mk.metrics.mean_squared_error}
        scores = mk.evaluate.scores(reptile, learner, tasks, jax.random.key(2), num_tasks=200, metrics=metrics)
        return mk.evaluate.student_t(scores["error"])

    assert interval(trained).high < interval(learner).low


# Bad input

TASK = classification(jax.random.key(1))
REGRESSION = regression(jax.random.key(1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: regressor(num_steps=-1), ValueError, r"num_steps must be at least 0, got -1"),
        (lambda: regressor(num_steps=1.5), TypeError, r"num_steps must be a Python int"),
        (lambda: regressor(batch_size=0), ValueError, r"batch_size must be at least 1, got 0\. None takes"),
        (lambda: reptile.with_batch_size(regressor(), -1), ValueError, r"batch_size must be at least 1, got -1"),
        (lambda: regressor(inner=0.4), TypeError, r"inner must be an mk.inner.AbstractSolver, such as .*SGD"),
        (lambda: regressor(norm_policy="joint"), ValueError, r"norm_policy='joint' is not known"),
        (lambda: regressor(select=lambda m: False), ValueError, r"selects no floating-point array of MLP"),
        (lambda: regressor(inner=mk.inner.SGD(mk.learned(0.1))), ValueError, r"inner\.rate is learned, but Reptile's"),
        (
            lambda: reptile.Reptile(eqx.nn.BatchNorm(2, "n", mode="batch"), inner=mk.inner.SGD(0.1), num_steps=1),
            ValueError,
            r"BatchNorm keeps Equinox state",
        ),
        (lambda: reptile.Reptile(1.0, inner=mk.inner.SGD(0.1), num_steps=1), TypeError, r"model must be callable"),
        (
            lambda: reptile.adapt(regressor(batch_size=2), REGRESSION.support),
            ValueError,
            r"Reptile with batch_size=2 draws .* needs a key",
        ),
        (
            lambda: reptile.adapt(regressor(loss=mk.losses.cross_entropy), REGRESSION.support),
            ValueError,
            r"needs integer labels, got support.y of dtype float64",
        ),
        (
            lambda: reptile.meta_loss(classifier(), classification(jax.random.key(1), way=4)),
            ValueError,
            r"outputs of shape \[8, 3\], but the task has way=4",
        ),
        (
            lambda: reptile.predict(reptile.adapt(classifier(norm_policy="one_by_one"), TASK.support), TASK.query.x[0]),
            ValueError,
            r"x must hold examples like the support's, float64\[4\], got float64\[\]",
        ),
        (
            lambda: reptile.meta_loss(regressor(norm_policy="inductive"), REGRESSION),
            ValueError,
            r"found no BatchStatNorm",
        ),
        (lambda: regressor(loss="mse"), TypeError, r"loss must be a function loss\(.*squared_error; got 'mse'"),
        (lambda: reptile.with_carried_state(regressor()), ValueError, r"SGD keeps no state"),
        (
            lambda: reptile.with_carried_state(regressor(inner=mk.inner.Optax(optax.adam, learning_rate=0.1))),
            ValueError,
            r"the state of Optax holds int32\[\], a counter of steps",
        ),
    ],
)
def test_bad_input(make, error, message):
    """Catches mistakes that train to a wrong number in silence, or fail far from their cause."""
    with pytest.raises(error, match=message):
        make()


def test_a_float32_model_under_64_bits():
    """Catches a constant of another dtype, which strict promotion refuses."""
    down = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree)
    learner = dataclasses.replace(regressor(batch_size=2), model=down(regressor().model))
    value, gradient = eqx.filter_value_and_grad(reptile.meta_loss)(learner, down(REGRESSION), jax.random.key(0))
    assert value.dtype == gradient.model.head.weight.dtype == jnp.float32
