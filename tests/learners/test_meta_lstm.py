"""The Meta-Learner LSTM: preprocessing, gates, gradients, batch norm and bad input."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import metakit as mk
from metakit import maml, meta_lstm
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


MODEL = mk.nn.MLP(2, 1, 5, 1, jnp.tanh, key=jax.random.key(0))
TASK = regression(jax.random.key(1))


def lively(key, hidden_size=4):
    """An update rule whose weights are large enough for every one of them to matter."""
    update = meta_lstm.LearnedUpdate(hidden_size, forget_bias=(2.0, 2.0), input_bias=(-2.0, -2.0), key=key)
    leaves, structure = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return eqx.tree_at(lambda u: u.p, jax.tree.unflatten(structure, moved), update.p)


def regressor(update=None, **options):
    update = lively(jax.random.key(2)) if update is None else update
    options = {"num_steps": 3, "loss": mk.losses.squared_error, **options}
    return meta_lstm.MetaLSTM(MODEL, update=update, **options)


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
    update = meta_lstm.LearnedUpdate.sgd(0.3, 4, key=jax.random.key(3))
    return meta_lstm.MetaLSTM(NormNet(), **{"update": update, "num_steps": 2, **options})


def assert_close(actual, expected, rtol=1e-9, atol=1e-13):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# Preprocessing


@pytest.mark.parametrize(
    ("v", "expected"),
    [
        (1.0, (0.0, 1.0)),
        (-0.1, (-0.230259, -1.0)),
        (1e-3, (-0.690776, 1.0)),
        (1e-5, (-1.0, 0.220265)),
        (0.0, (-1.0, 0.0)),
        (-math.exp(-10.0), (-1.0, -1.0)),
        (math.e**20, (2.0, 1.0)),
    ],
)
def test_preprocessing_is_the_published_one(v, expected):
    """Catches a wrong base, sign or threshold: T16's golden values."""
    np.testing.assert_allclose(meta_lstm.preprocess(jnp.asarray(v)), expected, atol=1e-6)


def test_preprocessing_at_the_threshold_is_continuous():
    """Catches a step between the two branches, and a threshold that the exact value misses."""
    edge = math.exp(-10.0)
    at, below, above = (meta_lstm.preprocess(jnp.asarray(edge * f)) for f in (1.0, 1 - 1e-9, 1 + 1e-9))
    np.testing.assert_allclose(at, (-1.0, 1.0), atol=1e-15)
    np.testing.assert_allclose(below, at, atol=1e-8)
    np.testing.assert_allclose(above, at, atol=1e-8)


@pytest.mark.parametrize(
    ("v", "slopes"), [(0.0, (0.0, math.exp(10.0))), (1e-5, (0.0, math.exp(10.0))), (-0.5, (-0.2, 0.0))]
)
@pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev])
def test_preprocessing_has_a_derivative_everywhere(v, slopes, jacobian):
    """Catches NaN from the unused logarithm of zero, in value or gradient, forwards or backwards."""
    np.testing.assert_allclose(jacobian(meta_lstm.preprocess)(jnp.asarray(v)), slopes, rtol=1e-12)
    assert jnp.isfinite(jax.grad(lambda p: meta_lstm.preprocess(jnp.asarray(v), p).sum())(10.0))


# Gates


def test_fixed_gates_are_gradient_descent():
    """Catches a gate on the wrong term, a sign, or a step at the wrong point: T15, exactly SGD."""
    learner = regressor(meta_lstm.LearnedUpdate.sgd(0.1, key=jax.random.key(3)), num_steps=5)
    sgd = maml.MAML(MODEL, inner=mk.inner.SGD(0.1), num_steps=5, loss=mk.losses.squared_error)
    assert_close(
        meta_lstm.adapt(learner, TASK.support).model, maml.adapt(sgd, TASK.support).model, rtol=1e-14, atol=1e-16
    )


@pytest.mark.parametrize(("second_order", "adjoint"), [(False, mk.inner.FirstOrder()), (True, mk.inner.Unrolled())])
def test_with_fixed_gates_the_gradient_is_mamls(second_order, adjoint):
    """Catches a stop-gradient on the parameters (no gradient at all) and one that is missing: T17."""
    update = meta_lstm.LearnedUpdate.sgd(0.1, key=jax.random.key(3))
    learner = regressor(update, second_order=second_order)
    sgd = maml.MAML(MODEL, inner=mk.inner.SGD(0.1), num_steps=3, loss=mk.losses.squared_error, adjoint=adjoint)
    actual = eqx.filter_jit(eqx.filter_grad(meta_lstm.meta_loss))(learner, TASK).model
    expected = eqx.filter_jit(eqx.filter_grad(maml.meta_loss))(sgd, TASK).model
    assert_close(actual, expected, rtol=1e-13, atol=1e-15)


def test_the_update_is_the_published_recursion():
    """Catches wrong inputs of the LSTM or gates, their order, or a recurrence on gates after the sigmoid."""
    update, sigmoid = lively(jax.random.key(2)), lambda z: 1 / (1 + np.exp(-z))
    lstm = jax.tree.map(np.asarray, update.lstm)

    def pre(v):
        large = np.abs(v) >= np.exp(-10)
        return np.where(large, np.log(np.abs(v)) / 10, -1), np.where(large, np.sign(v), np.exp(10) * v)

    theta, loss_path = np.array([0.7, -0.2, 0.0]), [2.0, 1e-6]
    gradients = [np.array([0.3, -2.0, 1e-5]), np.array([-1e-7, 0.5, 0.1])]
    h = c = np.zeros((3, 4))
    f = i = np.zeros(3)
    state, moved = update.init(jnp.asarray(theta)), jnp.asarray(theta)
    for loss, g in zip(loss_path, gradients, strict=True):
        moved, state = update(jnp.asarray(loss), jnp.asarray(g), moved, state)
        inputs = np.stack([*(np.full(3, part) for part in pre(loss)), *pre(g)], axis=1)
        gates = inputs @ lstm.input_weight + h @ lstm.recurrent_weight + lstm.bias
        into, keep, new, out = np.split(gates, 4, axis=1)
        c = sigmoid(keep) * c + sigmoid(into) * np.tanh(new)
        h = sigmoid(out) * np.tanh(c)
        f, i = (
            np.column_stack([h, theta, before]) @ np.asarray(gate.weight) + float(gate.bias)
            for gate, before in ((update.forget, f), (update.input, i))
        )
        theta = sigmoid(f) * theta - sigmoid(i) * g
        np.testing.assert_allclose(moved, theta, rtol=1e-12)
        np.testing.assert_allclose(state.forget, f, rtol=1e-12)
        np.testing.assert_allclose(state.cell, c, rtol=1e-12)


def test_the_published_start_and_its_size():
    """Catches another initialisation: 2,046 weights, small ones but for the gates' biases."""
    update = meta_lstm.LearnedUpdate(key=jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves((update.lstm, update.forget, update.input))) == 2046
    weights = jax.tree.leaves((update.lstm, update.forget.weight, update.input.weight))
    assert 0.0099 < max(float(jnp.abs(w).max()) for w in weights) <= 0.01
    assert all(float(jnp.abs(w).max()) > 0 for w in weights)
    many = [meta_lstm.LearnedUpdate(2, key=key) for key in jax.random.split(jax.random.key(1), 20)]
    for gates, low, high in (([u.forget.bias for u in many], 4, 5), ([u.input.bias for u in many], -5, -4)):
        assert low <= min(gates) < low + 0.3
        assert high - 0.3 < max(gates) <= high
    assert not mk.trainable(update).p.value


def test_one_lstm_serves_every_coordinate():
    """Catches coordinates that see each other: permuting them permutes the update."""
    update, order = lively(jax.random.key(2)), jnp.asarray([2, 0, 3, 1])
    theta, g = jax.random.normal(jax.random.key(4), (2, 4))
    state = update.init(theta)
    for _ in range(2):
        straight, next_state = update(jnp.asarray(0.5), g, theta, state)
        permuted = update(jnp.asarray(0.5), g[order], theta[order], jax.tree.map(lambda leaf: leaf[order], state))[0]
        np.testing.assert_allclose(permuted, straight[order], rtol=1e-13)
        theta, state = straight, next_state


# The meta-gradient


def test_first_order_freezes_gradients_and_losses_and_nothing_else():
    """Catches a stop-gradient too many (gates that see no parameters) or too few: against central differences.

    The gradients and losses that the LSTM read are noted down once; with those as data, the meta-loss is an ordinary
    function, whose derivative the first-order gradient must be.
    """
    learner = regressor()
    flat, as_model = ravel_pytree(MODEL)
    notes, theta, state = [], flat, learner.update.init(flat)
    loss_at = lambda p: mk.losses.squared_error(as_model(p)(TASK.support.x), TASK.support.y, reduction="mean")
    for _ in range(3):
        notes.append(jax.value_and_grad(loss_at)(theta))
        theta, state = learner.update(*notes[-1], theta, state)

    def frozen_loss(learner):
        theta = ravel_pytree(learner.model)[0]
        state = learner.update.init(theta)
        for loss, gradient in notes:
            theta, state = learner.update(loss, gradient, theta, state)
        return mk.losses.squared_error(as_model(theta)(TASK.query.x), TASK.query.y, reduction="mean")

    np.testing.assert_allclose(meta_lstm.meta_loss(learner, TASK), frozen_loss(learner), rtol=1e-12)
    gradient = eqx.filter_jit(eqx.filter_grad(meta_lstm.meta_loss))(learner, TASK)
    frozen_loss = eqx.filter_jit(frozen_loss)
    leaves, structure = jax.tree.flatten(eqx.filter(learner, eqx.is_inexact_array))
    static, slopes = eqx.filter(learner, eqx.is_inexact_array, inverse=True), jax.tree.leaves(gradient)
    random = np.random.default_rng(0)
    for moved in range(len(leaves)):
        direction = random.normal(size=leaves[moved].shape)

        def at(distance, moved=moved, direction=direction):
            shifted = [leaf + distance * direction if i == moved else leaf for i, leaf in enumerate(leaves)]
            return frozen_loss(eqx.combine(jax.tree.unflatten(structure, shifted), static))

        numerical = (at(1e-6) - at(-1e-6)) / 2e-6
        assert abs(float(numerical)) > 1e-9
        np.testing.assert_allclose(jnp.sum(slopes[moved] * direction), numerical, rtol=1e-6, atol=1e-8)


def test_dead_units_leave_the_gradient_finite():
    """Catches NaN meta-gradients behind a dead ReLU, whose inner gradients are exactly zero, in second order too."""
    model = mk.nn.MLP(2, 1, 5, 1, jax.nn.relu, key=jax.random.key(0))
    dead = eqx.tree_at(lambda m: m.hidden[0].bias, model, jnp.full(5, -1e3))
    learner = dataclasses.replace(regressor(second_order=True), model=dead)
    gradient = eqx.filter_jit(eqx.filter_grad(meta_lstm.meta_loss))(learner, TASK)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_batches_and_diagnostics():
    """Catches every update on the whole support set, batches of another key, and losses that are shifted by a step."""
    learner, key = regressor(batch_size=2, num_steps=4), jax.random.key(5)
    flat, as_model = ravel_pytree(MODEL)
    theta, state, losses, gates = flat, learner.update.init(flat), [], []
    for rows in minibatches(key, 6, 2, 4):
        x, y = TASK.support.x[rows], TASK.support.y[rows]
        loss, g = jax.value_and_grad(lambda p, x=x, y=y: jnp.mean((as_model(p)(x) - y) ** 2))(theta)
        theta, state = learner.update(loss, g, theta, state)
        losses.append(loss)
        gates.append([jnp.mean(jax.nn.sigmoid(gate)) for gate in (state.forget, state.input)])
    found = meta_lstm.diagnostics(learner, TASK, key)
    np.testing.assert_allclose(found.inner_losses, losses, rtol=1e-10)
    np.testing.assert_allclose(jnp.stack([found.forget_gates, found.input_gates], 1), jnp.asarray(gates), rtol=1e-10)
    np.testing.assert_allclose(found.query_loss_after, meta_lstm.meta_loss(learner, TASK, key), rtol=1e-12)
    before = meta_lstm.meta_loss(meta_lstm.with_num_steps(learner, 0), TASK)
    np.testing.assert_allclose(found.query_loss_before, before, rtol=1e-12)
    assert_close(meta_lstm.adapt(learner, TASK.support, key).model, as_model(theta))


def test_leaves_that_are_not_selected_stay_and_are_meta_trained():
    """Catches a frozen body that the LSTM moves, or that gets no meta-gradient."""
    learner = regressor(select=mk.inner.select.head_only)
    adapted = meta_lstm.adapt(learner, TASK.support).model
    np.testing.assert_array_equal(adapted.hidden[0].weight, MODEL.hidden[0].weight)
    assert (adapted.head.weight != MODEL.head.weight).all()
    gradient = eqx.filter_grad(meta_lstm.meta_loss)(learner, TASK).model
    assert float(jnp.abs(gradient.hidden[0].weight).max()) > 0


# Batch norm


def test_the_norm_policy_decides_whether_queries_see_each_other():
    """Catches transductive statistics under the name of inductive, and those of another set."""
    task = classification(jax.random.key(1))
    for policy, independent in (("inductive", True), ("transductive", False)):
        adapted = meta_lstm.adapt(classifier(norm_policy=policy), task.support)
        difference = jnp.abs(
            meta_lstm.predict(adapted, task.query.x)[:1] - meta_lstm.predict(adapted, task.query.x[:1])
        )
        assert float(difference.max()) < 1e-12 if independent else float(difference.max()) > 1e-3
    model = meta_lstm.adapt(classifier(), task.support).model
    frozen = mk.nn.freeze_statistics(model, task.support.x)
    inductive = meta_lstm.predict(meta_lstm.adapt(classifier(norm_policy="inductive"), task.support), task.query.x)
    np.testing.assert_allclose(inductive, frozen(task.query.x), rtol=1e-12)


@pytest.mark.parametrize("norm_policy", ["transductive", "inductive"])
def test_batch_statistics_are_each_episode_s_own(norm_policy):
    """Statistics of a whole batch of tasks, as a norm that sees through the map over tasks would take."""
    learner = classifier(norm_policy=norm_policy)
    tasks = [classification(jax.random.key(seed)) for seed in (1, 2)]

    def outputs(task):
        return meta_lstm.predict(meta_lstm.adapt(learner, task.support), task.query.x)

    alone = [outputs(task) for task in tasks]
    together = eqx.filter_vmap(outputs)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks))
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-9)
    assert float(jnp.abs(alone[0] - alone[1]).max()) > 1e-3


# Training


@pytest.mark.slow
def test_training_helps():
    """Catches an LSTM that does not learn: trained beats untrained, and not adapting, by disjoint intervals."""
    tasks = mk.tasks.Sinusoid(shot=5, queries=10)
    model = mk.nn.MLP(1, 1, 16, 1, jnp.tanh, key=jax.random.key(0))
    update = meta_lstm.LearnedUpdate(key=jax.random.key(1))
    learner = meta_lstm.MetaLSTM(model, update=update, num_steps=5, loss=mk.losses.squared_error)
    outer = mk.train.adam(1e-2, clip_norm=0.25)
    state = mk.train.init(learner, outer, key=jax.random.key(2))
    trained = mk.train.run_steps(meta_lstm, outer, state, tasks, num_steps=300, meta_batch=4)[0].learner

    def interval(learner):
        metrics = {"error": mk.metrics.mean_squared_error}
        scores = mk.evaluate.scores(meta_lstm, learner, tasks, jax.random.key(3), num_tasks=400, metrics=metrics)
        return mk.evaluate.student_t(scores["error"])

    adapted = interval(trained)
    assert adapted.high < interval(learner).low
    assert adapted.high < interval(meta_lstm.with_num_steps(trained, 0)).low


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: regressor(num_steps=-1), ValueError, r"num_steps must be a Python int of at least 0 .*got -1"),
        (lambda: regressor(num_steps=1.5), ValueError, r"num_steps must be a Python int .*got 1\.5"),
        (lambda: regressor(batch_size=0), ValueError, r"batch_size must be at least 1, got 0"),
        (lambda: meta_lstm.with_batch_size(regressor(), -1), ValueError, r"batch_size must be at least 1, got -1"),
        (lambda: regressor(mk.inner.SGD(0.1)), TypeError, r"update must be an mk.meta_lstm.LearnedUpdate.*got SGD"),
        (lambda: regressor(norm_policy="joint"), ValueError, r"norm_policy='joint' is not known"),
        (lambda: regressor(select=lambda m: False), ValueError, r"selects no floating-point array of MLP"),
        (
            lambda: dataclasses.replace(
                regressor(), model=eqx.tree_at(lambda m: m.head.bias, MODEL, jnp.zeros(1, jnp.float32))
            ),
            ValueError,
            r"must share a dtype.*\['float32', 'float64'\]",
        ),
        (
            lambda: dataclasses.replace(regressor(), model=eqx.nn.BatchNorm(2, "n", mode="batch")),
            ValueError,
            r"BatchNorm keeps Equinox state",
        ),
        (lambda: dataclasses.replace(regressor(), model=1.0), TypeError, r"model must be callable"),
        (
            lambda: meta_lstm.LearnedUpdate(0, key=jax.random.key(0)),
            ValueError,
            r"hidden_size must be at least 1, got 0",
        ),
        (
            lambda: meta_lstm.LearnedUpdate(forget_bias=(5.0, 4.0), key=jax.random.key(0)),
            ValueError,
            r"forget_bias must be a range \(low, high\), got \(5\.0, 4\.0\)",
        ),
        (
            lambda: meta_lstm.LearnedUpdate(p=jnp.ones(2), key=jax.random.key(0)),
            ValueError,
            r"p must be one number, got shape \[2\]",
        ),
        (
            lambda: meta_lstm.LearnedUpdate.sgd(1.0, key=jax.random.key(0)),
            ValueError,
            r"rate must lie between 0 and 1.*got 1\.0",
        ),
        (
            lambda: meta_lstm.adapt(regressor(batch_size=2), TASK.support),
            ValueError,
            r"MetaLSTM with batch_size=2 draws .* needs a key",
        ),
        (
            lambda: meta_lstm.adapt(regressor(loss=mk.losses.cross_entropy), TASK.support),
            ValueError,
            r"needs integer labels, got support.y of dtype float64",
        ),
        (
            lambda: meta_lstm.meta_loss(classifier(), classification(jax.random.key(1), way=4)),
            ValueError,
            r"outputs of shape \[8, 3\], but the task has way=4",
        ),
        (lambda: regressor(loss="mse"), TypeError, r"loss must be a function loss\(.*squared_error; got 'mse'"),
        (lambda: meta_lstm.meta_loss(regressor(norm_policy="inductive"), TASK), ValueError, r"found no BatchStatNorm"),
    ],
)
def test_bad_input(make, error, message):
    """Catches mistakes that train to a wrong number in silence, or fail far from their cause."""
    with pytest.raises(error, match=message):
        make()


def test_a_float32_model_under_64_bits():
    """Catches an update rule of another dtype than the parameters, which strict promotion refuses."""
    down = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree)
    learner = dataclasses.replace(regressor(second_order=True), model=down(MODEL))
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(meta_lstm.meta_loss))(learner, down(TASK))
    assert value.dtype == gradient.model.head.weight.dtype == jnp.float32
    assert gradient.update.lstm.bias.dtype == jnp.float64
