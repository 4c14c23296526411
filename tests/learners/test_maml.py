"""MAML: identities, configurations, policies and bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk
from metakit import maml


def regression(key, n=6, out=1):
    keys = jax.random.split(key, 3)
    slope = jax.random.normal(keys[0], (2, out))
    x = jax.random.normal(keys[1], (2 * n, 2))
    y = jnp.tanh(x @ slope) + 0.1 * jax.random.normal(keys[2], (2 * n, out))
    return mk.Episode(mk.Examples(x[:n], y[:n]), mk.Examples(x[n:], y[n:]))


def classification(key, way=3, shot=2, queries=3):
    keys = jax.random.split(key, 2)
    y = jnp.tile(jnp.arange(way), shot + queries)
    x = jax.random.normal(keys[0], (way, 4))[y] + 0.3 * jax.random.normal(keys[1], (len(y), 4))
    cut = way * shot
    return mk.Episode(mk.Examples(x[:cut], y[:cut], way=way), mk.Examples(x[cut:], y[cut:], way=way))


def regressor(**options):
    options = {"inner": mk.inner.SGD(0.1), "num_steps": 2, "loss": mk.losses.squared_error, **options}
    return maml.MAML(mk.nn.MLP(2, 1, 5, 1, jnp.tanh, key=jax.random.key(0)), **options)


class NormNet(eqx.Module):
    body: mk.nn.Linear
    norm: eqx.Module
    head: mk.nn.Linear

    def __init__(self, norm, way=3):
        self.body = mk.nn.Linear(4, 6, key=jax.random.key(1))
        self.norm = norm
        self.head = mk.nn.Linear(6, way, key=jax.random.key(2))

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.body(x))))


def classifier(norm=None, **options):
    options = {"inner": mk.inner.SGD(0.3), "num_steps": 2, **options}
    return maml.MAML(NormNet(mk.nn.BatchStatNorm(6) if norm is None else norm), **options)


def plain_classifier(**options):
    options = {"inner": mk.inner.SGD(0.3), "num_steps": 2, **options}
    return maml.MAML(mk.nn.MLP(4, 3, 5, 1, jnp.tanh, key=jax.random.key(0)), **options)


# MAML itself


def test_it_is_the_loop_written_by_hand():
    """Catches a wrong loss, set or number of steps: ten steps and their meta-gradient against a Python loop."""
    learner, task = regressor(num_steps=10), regression(jax.random.key(1))

    def by_hand(model):
        for _ in range(10):
            gradient = jax.grad(lambda m: jnp.mean((m(task.support.x) - task.support.y) ** 2))(model)
            model = jax.tree.map(lambda p, g: p - 0.1 * g, model, gradient)
        return jnp.mean((model(task.query.x) - task.query.y) ** 2), model(task.query.x)

    (loss, outputs), gradient = jax.value_and_grad(by_hand, has_aux=True)(learner.model)
    np.testing.assert_allclose(maml.predict(maml.adapt(learner, task.support), task.query.x), outputs, rtol=1e-12)
    np.testing.assert_allclose(maml.meta_loss(learner, task), loss, rtol=1e-12)
    actual = eqx.filter_grad(maml.meta_loss)(learner, task).model
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_first_order_gradient_is_the_plain_gradient_at_the_adapted_point():
    """Catches second-order terms in FOMAML: learn2learn's test_first_order_adaptation, 3 steps, 1e-8."""
    model, task = regressor().model, regression(jax.random.key(1))
    learner = maml.fomaml(model, inner=mk.inner.SGD(0.1), num_steps=3, loss=mk.losses.squared_error)
    adapted = maml.adapt(learner, task.support).model
    expected = eqx.filter_grad(lambda m: jnp.mean((m(task.query.x) - task.query.y) ** 2))(adapted)
    actual = eqx.filter_grad(maml.meta_loss)(learner, task).model
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)
    second = eqx.filter_grad(maml.meta_loss)(maml.with_adjoint(learner, mk.inner.Unrolled()), task).model
    assert float(jnp.abs(second.head.weight - actual.head.weight).max()) > 1e-3


def test_the_best_rate_for_linear_regression_has_no_gradient():
    """Catches a wrong gradient of a learned rate: T3, where the population's best one-step rate is known.

    The expectation over tasks is exact: the risk is quadratic in the slope and intercept, so signs ±1 stand for
    N(0, 1); it has degree 4 in each support input, so 3 Gauss-Legendre nodes stand for U[-1, 1], and degree 2 in the
    query input, where 2 nodes of equal weight do.
    """
    shot, nodes, weights = 5, np.sqrt(0.6) * np.array([-1.0, 0.0, 1.0]), np.array([5.0, 8.0, 5.0]) / 18
    m2, m4 = 1 / 3, 1 / 5
    second = np.array([(m2 * m4 + m2) / shot + (shot - 1) * m2**3 / shot, (m2**2 + 1) / shot + (shot - 1) / shot])
    best = (m2**2 + 1) / second.sum()
    risk = 0.5 * ((m2 + 1) - (m2**2 + 1) ** 2 / second.sum())
    np.testing.assert_allclose([best, risk], [0.981675, 0.121291], atol=1e-6)  # the reference's golden values

    grid = np.stack(np.meshgrid(*[np.arange(3)] * shot, indexing="ij"), -1).reshape(-1, shot)
    coefficients = jnp.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    query_x = jnp.asarray([[-1.0], [1.0]]) / jnp.sqrt(3.0)

    def loss_of(learner, x, coefficient):
        line = lambda inputs: inputs * coefficient[0] + coefficient[1]
        return maml.meta_loss(learner, mk.Episode(mk.Examples(x, line(x)), mk.Examples(query_x, line(query_x))))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def population(learner):
        over_coefficients = jax.vmap(loss_of, in_axes=(None, None, 0))
        over_inputs = jax.vmap(over_coefficients, in_axes=(None, 0, None))
        losses = over_inputs(learner, jnp.asarray(nodes[grid])[..., None], coefficients)
        return jnp.sum(jnp.asarray(weights[grid].prod(1)) * jnp.mean(losses, axis=1))

    # Our loss has no factor one half, so the rate is half of the identity's and the risk twice.
    model = jax.tree.map(jnp.zeros_like, mk.nn.Linear(1, 1, key=jax.random.key(0)))

    def make(rate):
        solver = mk.inner.SGD(mk.learned(rate))
        return maml.MAML(model, inner=solver, num_steps=1, loss=mk.losses.squared_error)

    value, gradient = population(make(best / 2))
    np.testing.assert_allclose(value, 2 * risk, rtol=1e-12)
    np.testing.assert_allclose(gradient.inner.rate.value, 0.0, atol=1e-13)
    below, above = (population(make(best / 2 + shift))[1].inner.rate.value for shift in (-0.01, 0.01))
    assert below < -1e-3 < 1e-3 < above


class Dot(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    ("variance", "noise", "best", "risk"),
    [(1.0, 0.0, 10 / 13, 3 / 13), (2.0, 0.5, 0.7547170, 0.4905660)],
    ids=["noiseless", "noisy"],
)
def test_the_best_rate_for_gaussian_inputs_has_no_gradient(variance, noise, best, risk):
    """Catches the noise or the shot entering the learned rate wrongly: T3 with x ~ N(0, I), d = 2, K = 10.

    The mean over 40,000 tasks must lie within 4 standard errors; by chance 1 of 16,000 keys misses, and ours is fixed.
    """

    def draw(key):
        keys = jax.random.split(key, 4)
        x, query_x = jax.random.normal(keys[0], (10, 2)), jax.random.normal(keys[1], (10, 2))
        w = jnp.sqrt(variance) * jax.random.normal(keys[2], (2, 1))
        y = x @ w + jnp.sqrt(noise) * jax.random.normal(keys[3], (10, 1))
        return mk.Episode(mk.Examples(x, y), mk.Examples(query_x, query_x @ w))

    # Our loss has no factor one half, so the rate is half of the identity's and the risk twice.
    solver = mk.inner.SGD(mk.learned(best / 2))
    learner = maml.MAML(Dot(jnp.zeros((2, 1))), inner=solver, num_steps=1, loss=mk.losses.squared_error)

    @eqx.filter_jit
    def losses_and_slopes(keys):
        one = eqx.filter_value_and_grad(maml.meta_loss)
        values, gradients = eqx.filter_vmap(lambda key: one(learner, draw(key)))(keys)
        return values, gradients.inner.rate.value

    losses, slopes = losses_and_slopes(jax.random.split(jax.random.key(0), 40_000))
    for measured, expected in ((losses, 2 * risk), (slopes, 0.0)):
        error = float(jnp.std(measured)) / 200
        assert abs(float(jnp.mean(measured)) - expected) < 4 * error
        assert error < 0.1  # the slope's own slope is 20 or more, so this is the best rate to half a per cent


def test_sum_over_shot_is_the_mean_at_way_times_the_rate():
    """Catches a reduction that divides by the wrong count: T7, exact for the meta-loss and its gradient."""
    task = classification(jax.random.key(1), way=3)
    published = plain_classifier(inner=mk.inner.SGD(0.1), reduction="sum/shot")
    mean = plain_classifier(inner=mk.inner.SGD(0.3), reduction="mean")
    np.testing.assert_allclose(maml.meta_loss(published, task), maml.meta_loss(mean, task), rtol=1e-14)
    gradients = [eqx.filter_grad(maml.meta_loss)(learner, task).model for learner in (published, mean)]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_orders_and_names_do_not_matter():
    """Catches labels or rows used by position: T7b, permuted support rows, and classes renamed with their head rows."""
    learner, task = plain_classifier(), classification(jax.random.key(1))
    expected = maml.meta_loss(learner, task)
    rows = jnp.asarray([3, 0, 5, 1, 4, 2])
    shuffled = mk.Episode(mk.Examples(task.support.x[rows], task.support.y[rows], way=3), task.query)
    np.testing.assert_allclose(maml.meta_loss(learner, shuffled), expected, rtol=1e-12)

    new_name = jnp.asarray([2, 0, 1])
    renamed = mk.Episode(
        mk.Examples(task.support.x, new_name[task.support.y], way=3),
        mk.Examples(task.query.x, new_name[task.query.y], way=3),
    )
    old_name = jnp.argsort(new_name)
    heads = lambda l: (l.model.head.weight, l.model.head.bias)
    moved = eqx.tree_at(heads, learner, (learner.model.head.weight[:, old_name], learner.model.head.bias[old_name]))
    np.testing.assert_allclose(maml.meta_loss(moved, renamed), expected, rtol=1e-12)

    tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves), task, classification(jax.random.key(5)))
    losses = eqx.filter_vmap(maml.meta_loss, in_axes=(None, 0))(learner, tasks)
    swapped = eqx.filter_vmap(maml.meta_loss, in_axes=(None, 0))(learner, jax.tree.map(lambda a: a[::-1], tasks))
    np.testing.assert_allclose(swapped, losses[::-1], rtol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        regressor,
        lambda **o: maml.meta_sgd(regressor().model, rate=0.1, loss=mk.losses.squared_error),
        lambda **o: maml.mamlpp(regressor().model, rate=0.1, num_steps=3, loss=mk.losses.squared_error),
        lambda **o: maml.anil(
            regressor().model, inner=mk.inner.SGD(mk.learned(0.1)), num_steps=2, loss=mk.losses.squared_error
        ),
    ],
    ids=["maml", "meta_sgd", "mamlpp", "anil"],
)
def test_adaptation_helps_and_the_meta_gradient_reaches_everything(make):
    """Catches a part of the learner that is cut off: learn2learn's test_adaptation and test_graph_connection."""
    learner, task = make(), regression(jax.random.key(1))
    losses = maml.diagnostics(learner, task).inner_losses
    assert float(losses[-1]) < float(losses[0])
    arrays = eqx.filter(eqx.filter_grad(maml.meta_loss)(learner, task), mk.trainable(learner))
    assert len(jax.tree.leaves(arrays)) == sum(jax.tree.leaves(mk.trainable(learner)))
    for leaf in jax.tree.leaves(arrays):
        assert float(jnp.abs(leaf).max()) > 0


class Recurrent(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear
    table: jax.Array  # integers: neither adapted nor differentiated

    def __init__(self):
        self.cell = eqx.nn.LSTMCell(1, 4, key=jax.random.key(0))
        self.head = eqx.nn.Linear(4, 1, key=jax.random.key(1))
        self.table = jnp.arange(3)

    def __call__(self, sequences):
        def one(sequence):
            start = (jnp.zeros(4, sequence.dtype), jnp.zeros(4, sequence.dtype))
            (hidden, _), _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), start, sequence)
            return self.head(hidden)

        return jax.vmap(one)(sequences)


@pytest.mark.parametrize("adjoint", [mk.inner.Unrolled(), mk.inner.MixedMode(), mk.inner.Checkpointed()])
def test_a_recurrent_network_adapts(adjoint):
    """Catches models of plain layers only: learn2learn's test_rnn_clone, one meta-step lowers the adapted loss."""
    x = jax.random.normal(jax.random.key(2), (8, 5, 1))
    y = jnp.sum(x, axis=1)
    task = mk.Episode(mk.Examples(x[:4], y[:4]), mk.Examples(x[4:], y[4:]))
    learner = maml.MAML(
        Recurrent(), inner=mk.inner.SGD(0.1), num_steps=2, loss=mk.losses.squared_error, adjoint=adjoint
    )
    loss, gradient = eqx.filter_jit(eqx.filter_value_and_grad(maml.meta_loss))(learner, task)
    moves = eqx.filter(gradient, mk.trainable(learner))  # not the rate, which is fixed
    stepped = eqx.apply_updates(learner, jax.tree.map(lambda g: -0.01 * g, moves))
    assert float(maml.meta_loss(stepped, task)) < float(loss)


# Which leaves adapt


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (maml.anil, {"head.weight", "head.bias"}),
        (maml.boil, {"body.weight", "body.bias", "norm.scale", "norm.bias"}),
    ],
)
def test_frozen_leaves_do_not_move_and_are_meta_trained(make, moves):
    """Catches ANIL and BOIL the wrong way round, and frozen leaves without a meta-gradient (higher's
    testFrozenParameters)."""
    learner = make(classifier().model, inner=mk.inner.SGD(0.3), num_steps=2)
    task = classification(jax.random.key(1))
    before, _ = jax.tree_util.tree_flatten_with_path(learner.model)
    after = jax.tree.leaves(maml.adapt(learner, task.support).model)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, old), new in zip(before, after, strict=True)
        if float(jnp.abs(old - new).max()) > 1e-12
    }
    # Before a batch norm the body's bias has no effect, so its gradient is rounding.
    assert changed == moves - {"body.bias"}
    gradient = eqx.filter_grad(maml.meta_loss)(learner, task).model
    assert float(jnp.abs(gradient.body.weight).max()) > 0
    assert float(jnp.abs(gradient.head.weight).max()) > 0


def test_running_statistics_do_not_adapt():
    """Catches an inner gradient step on frozen batch statistics, which are leaves with a gradient."""
    x = jax.random.normal(jax.random.key(9), (20, 4))
    model = mk.nn.freeze_statistics(classifier().model, x)
    learner = maml.MAML(model, inner=mk.inner.SGD(0.3), num_steps=2)
    adapted = maml.adapt(learner, classification(jax.random.key(1)).support).model
    np.testing.assert_array_equal(adapted.norm.statistics.mean, model.norm.statistics.mean)
    assert float(jnp.abs(adapted.norm.scale - model.norm.scale).max()) > 0


# Batch norm


def test_the_norm_policy_decides_whether_queries_see_each_other():
    """Catches transductive statistics under the name of inductive."""
    task = classification(jax.random.key(1))
    for policy, independent in (("inductive", True), ("transductive", False)):
        adapted = maml.adapt(classifier(norm_policy=policy), task.support)
        whole, alone = maml.predict(adapted, task.query.x), maml.predict(adapted, task.query.x[:4])
        assert bool(jnp.allclose(whole[:4], alone, atol=1e-12)) is independent


def test_inductive_statistics_are_the_support_sets_under_the_adapted_weights():
    """Catches statistics of the unadapted network, and a loss under another policy than the prediction."""
    task, learner = classification(jax.random.key(1)), classifier(norm_policy="inductive")
    adapted = maml.adapt(learner, task.support)
    features = adapted.model.body(task.support.x)
    np.testing.assert_allclose(adapted.model.norm.statistics.mean, features.mean(0), rtol=1e-12)
    expected = mk.losses.cross_entropy(maml.predict(adapted, task.query.x), task.query.y, reduction="mean")
    np.testing.assert_allclose(maml.meta_loss(learner, task), expected, rtol=1e-12)


def test_each_step_has_its_own_norm_and_the_query_the_last():
    """Catches per-step norms used out of order: with K steps exactly K sets have a gradient, and the last is the
    query's, as in the released MAML++."""
    learner = classifier(mk.nn.PerStepNorm(4, 6), num_steps=3)
    task = classification(jax.random.key(1))
    gradient = eqx.filter_grad(maml.meta_loss)(learner, task).model.norm
    used = np.asarray(jnp.abs(gradient.scale).max(1) > 0)
    assert used.tolist() == [True, True, True, False]
    scales = jnp.arange(1.0, 5.0)[:, None] * jnp.ones((1, 6))
    learner = eqx.tree_at(lambda l: l.model.norm.scale, learner, scales)
    frozen_norms = eqx.tree_at(lambda l: l.inner.rate.value, learner, jnp.zeros(()))
    np.testing.assert_array_equal(maml.adapt(frozen_norms, task.support).model.norm.scale, scales[2])


# Multi-step loss, path, diagnostics


@pytest.mark.parametrize("norm_policy", ["transductive", "inductive"])
def test_path_is_adapt_at_every_number_of_steps(norm_policy):
    """Catches an off-by-one between the path's entries and the number of steps."""
    task, learner = classification(jax.random.key(1)), classifier(norm_policy=norm_policy)
    path = eqx.filter_jit(maml.path)(learner, task.support, num_steps=4)
    outputs = eqx.filter_vmap(maml.predict, in_axes=(eqx.if_array(0), None))(path, task.query.x)
    assert outputs.shape == (5, 9, 3)
    for steps in range(5):
        adapted = maml.adapt(maml.with_num_steps(learner, steps), task.support)
        np.testing.assert_allclose(outputs[steps], maml.predict(adapted, task.query.x), rtol=1e-10)


def test_multi_step_loss_weighs_the_query_loss_after_each_step():
    """Catches weights applied to the wrong step, or to support losses; all weight on the last step is plain MAML."""
    task, weights = classification(jax.random.key(1)), jnp.asarray([0.2, 0.3, 0.5])
    learner = classifier(num_steps=3, step_weights=weights)
    after = [maml.meta_loss(maml.with_num_steps(learner, steps), task) for steps in (1, 2, 3)]
    np.testing.assert_allclose(maml.meta_loss(learner, task), jnp.dot(weights, jnp.stack(after)), rtol=1e-12)
    last = maml.with_step_weights(learner, jnp.asarray([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(maml.meta_loss(last, task), after[-1], rtol=1e-12)
    assert not any(jax.tree.leaves(mk.trainable(learner.step_weights)))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (50, [0.1, 0.1, 0.1, 0.1, 0.6]),
        (100, [0.006, 0.006, 0.006, 0.006, 0.976]),
        (10**6, [0.006, 0.006, 0.006, 0.006, 0.976]),
    ],
)
def test_multi_step_weights_are_the_published_schedule(step, expected):
    """Catches a schedule that does not sum to 1 or ends at 0, where the released code keeps 0.03 / K."""
    np.testing.assert_allclose(maml.multi_step_weights(step, 5, 100), expected, atol=1e-12)
    traced = jax.jit(lambda i: maml.multi_step_weights(i, 5, 100))(jnp.asarray(step))
    np.testing.assert_allclose(traced, expected, atol=1e-12)
    np.testing.assert_allclose(maml.multi_step_weights(step, 1, 100), [1.0])


def test_changing_weights_or_rates_compiles_once():
    """Catches a schedule or a rate that is part of the compiled program."""
    traces = []

    @eqx.filter_jit
    def loss(learner, task):
        traces.append(1)
        return maml.meta_loss(learner, task)

    task = classification(jax.random.key(1))
    for step, rate in enumerate((0.1, 0.2, 1)):
        learner = plain_classifier(inner=mk.inner.SGD(rate), step_weights=jnp.full(2, 0.5))
        loss(maml.with_step_weights(learner, maml.multi_step_weights(step, 2, 2)), task)
    assert len(traces) == 1


def test_diagnostics_are_recomputed_losses():
    """Catches inner losses that are shifted by a step, or taken on the query set."""
    learner, task = classifier(num_steps=3), classification(jax.random.key(1))
    found = maml.diagnostics(learner, task)
    for steps in range(4):
        model = maml.adapt(maml.with_num_steps(learner, steps), task.support).model
        expected = mk.losses.cross_entropy(model(task.support.x), task.support.y, reduction="mean")
        np.testing.assert_allclose(found.inner_losses[steps], expected, rtol=1e-12)
    np.testing.assert_allclose(found.query_loss_after, maml.meta_loss(learner, task), rtol=1e-12)
    before = maml.meta_loss(maml.with_num_steps(learner, 0), task)
    np.testing.assert_allclose(found.query_loss_before, before, rtol=1e-12)


@pytest.mark.optimised
@pytest.mark.parametrize("adjoint", [mk.inner.Unrolled(), mk.inner.MixedMode(), mk.inner.Checkpointed()])
def test_adapting_alone_needs_no_memory_for_steps(adjoint):
    """Catches a meta-graph kept at test time: learn2learn's test_memory_consumption, by the compiler's analysis."""

    def temporary(num_steps):
        learner = regressor(num_steps=num_steps, adjoint=adjoint)
        arrays, static = eqx.partition(learner, eqx.is_array)

        def adapted(arrays, support):
            return eqx.filter(maml.adapt(eqx.combine(arrays, static), support), eqx.is_array)

        support = regression(jax.random.key(1)).support
        return jax.jit(adapted).lower(arrays, support).compile().memory_analysis().temp_size_in_bytes

    # A kept graph costs at least the parameters at each of the 54 steps more. A loop of another length may still be
    # laid out with a buffer or two more, or less: 192 bytes on one machine, none on another.
    parameter_bytes = 21 * 8
    assert temporary(60) - temporary(6) < 4 * parameter_bytes


def test_meta_sgd_with_anil_and_a_longer_evaluation_of_lslr():
    """Catches rates that do not fit a part of the model, and steps without rates."""
    model, task = classifier().model, classification(jax.random.key(1))
    both = maml.meta_sgd(model, rate=0.3, num_steps=2, select=mk.inner.select.head_only)
    plain = maml.anil(model, inner=mk.inner.SGD(0.3), num_steps=2)
    np.testing.assert_allclose(maml.meta_loss(both, task), maml.meta_loss(plain, task), rtol=1e-12)
    with pytest.raises(ValueError, match=r"num_steps=6 .*rates for 5 steps only"):
        maml.path(maml.mamlpp(model, rate=0.3), task.support, num_steps=6)


# Bad input

TASK = classification(jax.random.key(1))
REGRESSION = regression(jax.random.key(1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: regressor(num_steps=-1), ValueError, r"num_steps must be at least 0, got -1"),
        (lambda: regressor(num_steps=1.5), TypeError, r"num_steps must be a Python int"),
        (lambda: regressor(inner=0.4), TypeError, r"inner must be an mk.inner.AbstractSolver, such as .*SGD"),
        (lambda: regressor(adjoint="mixed"), TypeError, r"adjoint must be an mk.inner.AbstractAdjoint"),
        (lambda: regressor(reduction="sum/shots"), ValueError, r"'sum/shots' is not known. Did you mean 'sum/shot'"),
        (lambda: regressor(inner=mk.inner.SGD), TypeError, r"inner must be .* got the class SGD\. Call it first"),
        (
            lambda: maml.MAML(mk.nn.MLP, inner=mk.inner.SGD(0.1), num_steps=1),
            TypeError,
            r"model must be a network, got the class MLP\. Call it first",
        ),
        (lambda: regressor(loss="mse"), TypeError, r"loss must be a function loss\(.*squared_error; got 'mse'"),
        (lambda: regressor(norm_policy="joint"), ValueError, r"norm_policy='joint' is not known"),
        (lambda: regressor(step_weights=jnp.ones(3)), ValueError, r"one weight per inner step, shape \[2\], got \[3\]"),
        (lambda: regressor(num_steps=0, step_weights=jnp.ones(0)), ValueError, r"needs num_steps >= 1"),
        (lambda: regressor(select=lambda m: False), ValueError, r"selects no floating-point array of MLP"),
        (
            lambda: maml.MAML(eqx.nn.BatchNorm(2, "n", mode="batch"), inner=mk.inner.SGD(0.1), num_steps=1),
            ValueError,
            r"BatchNorm keeps Equinox state .*mk\.nn\.BatchStatNorm",
        ),
        (lambda: maml.MAML((1.0,), inner=mk.inner.SGD(0.1), num_steps=1), TypeError, r"model must be callable"),
        (lambda: maml.adapt(regressor(reduction="sum/shot"), REGRESSION.support), ValueError, r"support.way is None"),
        (
            lambda: maml.meta_loss(regressor(norm_policy="inductive"), REGRESSION),
            ValueError,
            r"found no BatchStatNorm",
        ),
        (
            lambda: maml.adapt(regressor(loss=mk.losses.cross_entropy), REGRESSION.support),
            ValueError,
            r"needs integer labels, got support.y of dtype float64 and shape \[6, 1\].*squared_error",
        ),
        (
            lambda: maml.meta_loss(plain_classifier(), classification(jax.random.key(1), way=4)),
            ValueError,
            r"outputs of shape \[8, 3\], but the task has way=4",
        ),
        (
            lambda: maml.predict(maml.Adapted(plain_classifier().model, way=5), TASK.query.x),
            ValueError,
            r"outputs of shape \[9, 3\], but the task has way=5",
        ),
        (lambda: maml.multi_step_weights(0, 0, 10), ValueError, r"at least 1, got 0 and 10"),
        (lambda: maml.mamlpp(classifier().model, rate=0.1, num_steps=0), ValueError, r"num_steps must be at least 1"),
    ],
)
def test_bad_input(make, error, message):
    """Catches mistakes that train to a wrong number in silence, or fail far from their cause."""
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
def test_annealing_from_first_to_second_order_is_two_phases():
    """Catches a second phase that starts the optimiser afresh, or an adjoint that changes the learner's arrays."""
    outer = mk.train.adam(1e-2, schedule="constant")
    learner = maml.mamlpp(plain_classifier().model, rate=0.3, num_steps=2)

    def phase(state, adjoint):
        state = mk.train.with_learner(state, maml.with_adjoint(state.learner, adjoint))
        return mk.train.run_steps(maml, outer, state, classification, num_steps=3, meta_batch=2)

    first_order, second_order = mk.inner.FirstOrder(), mk.inner.Unrolled()
    finals = []
    for adjoints in ([first_order, second_order], [first_order, first_order]):
        state = mk.train.init(learner, outer, key=jax.random.key(0))
        for adjoint in adjoints:
            state, diagnostics = phase(state, adjoint)
            assert diagnostics.finite.all()
        assert int(state.step) == 6
        finals.append(state.learner.model.head.weight)
    assert jnp.abs(finals[0] - finals[1]).max() > 1e-6
