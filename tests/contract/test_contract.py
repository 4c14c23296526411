"""What every learner must hold, row by row of learners.py."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners import ROWS

import metakit as mk

# An adapted, a compared and a random learner. What the toolkit does to every learner in the same way, and takes long,
# is tried on these by default, and on all of them in CI's slow run.
STAND_INS = {"maml", "prototypical", "reptile"}


def over(rows, default=lambda row: not row.slow, marked=()):
    marks = lambda row: [*marked] if default(row) else [*marked, pytest.mark.slow]
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks(row)) for row in rows])


each = over(ROWS)
each_in_slow_runs = over(ROWS, lambda row: row.name in STAND_INS)
# As users run them; by default only the row whose derivative XLA's fusing once made wrong, the rest in CI's slow run.
each_optimised = over(ROWS, lambda row: row.name == "maml_images", [pytest.mark.optimised])
each_of_episodes = over([row for row in ROWS if row.acting is None])
each_classifier = over([row for row in ROWS if row.metric is mk.metrics.accuracy])


def make_learner(row):
    return row.make_learner(jax.random.key(0))


def make_tasks(row, count, first=0):
    return eqx.filter_vmap(row.make_task)(mk.random.task_keys(jax.random.key(1), first, count))


def make_keys(count):
    return mk.random.task_keys(jax.random.key(2), 0, count)


def take(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def support_and_x(row, learner, task, key):
    if row.acting is None:
        return task.support, task.query.x
    data = row.algorithm.collect(learner, task, key)
    return row.acting.support(data), row.acting.x(data)


def predictions(row, learner, task, key):
    support, x = support_and_x(row, learner, task, key)
    return row.algorithm.predict(row.algorithm.adapt(learner, support, key), x, key)


@functools.cache
def reference(name):
    """The meta-gradient over four tasks on one device."""
    row = next(row for row in ROWS if row.name == name)
    run = eqx.filter_jit(functools.partial(mk.sharding.meta_gradient, row.algorithm, chunk=None))
    return run(make_learner(row), make_tasks(row, 4), make_keys(4))


def assert_trees_close(actual, expected, rtol=1e-9, atol=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        if eqx.is_array(a) and not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        if eqx.is_array(a):
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@each
def test_it_is_an_algorithm(row):
    """Catches a signature that only works by keyword, and outputs of another shape than metrics expect."""
    assert isinstance(row.algorithm, mk.Algorithm)
    expected = {
        "adapt": ["learner", "support"],
        "predict": ["adapted", "x"],
        "meta_loss": ["learner", "task"],
    }
    for name, first_two in expected.items():
        parameters = inspect.signature(getattr(row.algorithm, name)).parameters
        assert list(parameters) == [*first_two, "key"]
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
        assert parameters["key"].default is None

    task, key = row.make_task(jax.random.key(3)), jax.random.key(4)
    outputs = jax.tree.leaves(eqx.filter_eval_shape(predictions, row, make_learner(row), task, key))
    if row.acting is None:
        n, way = len(task.query.x), task.query.way
        assert {output.shape for output in outputs} == {task.query.y.shape if way is None else (n, way)}
    else:  # the parameters of a distribution for each observation
        _, x = eqx.filter_eval_shape(support_and_x, row, make_learner(row), task, key)
        assert {output.shape[0] for output in outputs} == {len(x)}
    loss = eqx.filter_eval_shape(row.algorithm.meta_loss, make_learner(row), task, key)
    assert loss.shape == ()
    assert {loss.dtype, *(output.dtype for output in outputs)} == {jnp.dtype("float64")}


@each
def test_every_number_is_a_strongly_typed_array(row):
    """Catches a Python float in a learner (no gradient) and a weak type (a second trace after the first update)."""
    for leaf in jax.tree.leaves(make_learner(row)):
        assert not isinstance(leaf, float | complex | np.ndarray)
        assert not getattr(leaf, "weak_type", False)


@each
def test_jit_equals_eager(row):
    """Catches Python branches on values, and state that a trace freezes."""
    learner, task, key = make_learner(row), row.make_task(jax.random.key(3)), jax.random.key(4)

    def both(learner, task, key):
        return row.algorithm.meta_loss(learner, task, key), predictions(row, learner, task, key)

    assert_trees_close(eqx.filter_jit(both)(learner, task, key), both(learner, task, key))


def check_vmap(row):
    learner, tasks, keys = make_learner(row), make_tasks(row, 3), make_keys(3)

    def both(learner, task, key):
        return row.algorithm.meta_loss(learner, task, key), predictions(row, learner, task, key)

    together = eqx.filter_jit(eqx.filter_vmap(both, in_axes=(None, 0, 0)))(learner, tasks, keys)
    compiled = eqx.filter_jit(both)
    for i in range(3):
        assert_trees_close(take(together, i), compiled(learner, take(tasks, i), keys[i]))


@each
def test_vmap_over_tasks_equals_a_loop(row):
    """Catches a function that mixes tasks, or that counts a task axis as examples."""
    check_vmap(row)


@each_optimised
def test_vmap_equals_a_loop_in_optimised_programs(row):
    """Catches a derivative that is right only as long as XLA does not fuse it: max-pooling's once was not."""
    check_vmap(row)


@each
def test_the_key_matters_exactly_where_the_row_says_so(row):
    """Catches hidden randomness, and a stochastic learner that runs without its key."""
    learner, task = make_learner(row), row.make_task(jax.random.key(3))
    loss = eqx.filter_jit(row.algorithm.meta_loss)
    first, second = loss(learner, task, jax.random.key(0)), loss(learner, task, jax.random.key(1))
    assert (first != second) == row.random
    if row.random:
        with pytest.raises(ValueError, match="key"):
            row.algorithm.meta_loss(learner, task)
    else:
        assert loss(learner, task) == first


def check_meta_gradient(row):
    learner, task, key = make_learner(row), row.make_task(jax.random.key(3)), jax.random.key(4)
    gradient = eqx.filter_jit(eqx.filter_grad(row.algorithm.meta_loss))(learner, task, key)

    if row.meta_gradient is not None:
        where, expected = row.meta_gradient(learner, task, key)
        assert_trees_close(where(gradient), expected)
        return

    if row.acting is not None:  # what was acted out stays as it is while the learner moves
        task = row.algorithm.collect(learner, task, key)
    params, static = eqx.partition(learner, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)
    slopes = jax.tree.leaves(gradient)
    assert len(slopes) == len(leaves)

    @jax.jit
    def loss_along(leaves, directions, distance):
        moved = [leaf + distance * direction for leaf, direction in zip(leaves, directions, strict=True)]
        return row.algorithm.meta_loss(eqx.combine(jax.tree.unflatten(structure, moved), static), task, key)

    # 1e-6: the truncation error, of order 1e-12, and rounding, 1e-10, are both far below the tolerance, and
    # with ReLU no kink lies this near.
    distance = 1e-6
    random = np.random.default_rng(0)
    scale = max(float(jnp.max(jnp.abs(slope))) for slope in slopes)
    for moved in range(len(leaves)):
        directions = [
            random.normal(size=leaf.shape) if i == moved else np.zeros(leaf.shape) for i, leaf in enumerate(leaves)
        ]
        ahead, behind = (loss_along(leaves, directions, sign * distance) for sign in (1.0, -1.0))
        slope = jnp.sum(slopes[moved] * directions[moved])
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * distance), rtol=1e-6, atol=1e-7 * scale)


@each
def test_the_meta_gradient_is_right(row):
    """Catches a dropped second order, a stop-gradient in the wrong place, and leaves without their gradient."""
    check_meta_gradient(row)


@each_optimised
def test_the_meta_gradient_is_right_in_optimised_programs(row):
    """Catches an adjoint that rounds or reorders otherwise once XLA fuses it, in a learner that uses it."""
    check_meta_gradient(row)


@each_in_slow_runs
def test_the_gradient_of_a_mean_is_the_mean_of_gradients(row):
    """Catches tasks that leak into each other's gradient under vmap."""
    learner, tasks, keys = make_learner(row), make_tasks(row, 4), make_keys(4)
    one = eqx.filter_vmap(eqx.filter_grad(row.algorithm.meta_loss), in_axes=(None, 0, 0))
    gradients = eqx.filter_jit(one)(learner, tasks, keys)
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
    assert_trees_close(reference(row.name).gradient, mean)


def by_shard_map(*args, **options):
    return eqx.filter_jit(mk.sharding.meta_gradient)(*args, **options)


@each_in_slow_runs
def test_two_devices_equal_one(row):
    """Catches a learner that is wrong only when tasks are spread: closed-over devices, inner gradients summed."""
    check_two_devices(row, by_shard_map)


@each_in_slow_runs
@pytest.mark.parametrize("way", [mk.sharding.meta_gradient_pmap, mk.sharding.meta_gradient_named])
def test_other_ways_to_two_devices_equal_one(row, way):
    """Catches the same in the other ways to spread tasks."""
    check_two_devices(row, way)


def check_two_devices(row, way):
    mesh = mk.sharding.task_mesh(2)
    spread = way(row.algorithm, make_learner(row), make_tasks(row, 4), make_keys(4), mesh=mesh, chunk=None)
    assert_trees_close(spread, reference(row.name))


@each
def test_one_task_at_a_time_equals_all_at_once(row):
    """Catches a difference between the mapped and the plain form of an operation, such as per-task convolution."""
    run = eqx.filter_jit(functools.partial(mk.sharding.meta_gradient, row.algorithm, chunk=1))
    assert_trees_close(run(make_learner(row), make_tasks(row, 4), make_keys(4)), reference(row.name))


@each
def test_one_trace_over_changed_leaves(row):
    """Catches numbers that are part of the program: a new rate, or the second training step, would compile again."""
    traces = 0

    @eqx.filter_jit
    def loss(learner, task, key):
        nonlocal traces
        traces += 1
        return row.algorithm.meta_loss(learner, task, key)

    learner = make_learner(row)
    moved = jax.tree.map(lambda leaf: leaf * 1.01 if eqx.is_inexact_array(leaf) else leaf, learner)
    values = [
        loss(each, row.make_task(jax.random.key(i)), jax.random.key(i)) for i, each in enumerate([learner, moved])
    ]
    assert traces == 1
    assert values[0] != values[1]


def optimiser():
    return optax.adam(1e-2)


@each_in_slow_runs
def test_a_scan_of_training_steps_equals_a_loop(row):
    """Catches a learner whose structure, dtypes or numbers change under training inside `lax.scan`."""
    outer = optimiser()
    state = mk.train.init(make_learner(row), outer, key=jax.random.key(5))
    looped = state
    losses = []
    for _ in range(3):
        tasks = mk.train.draw_tasks(row.make_task, looped, meta_batch=2)
        looped, diagnostics = mk.train.step(row.algorithm, outer, looped, tasks)
        losses.append(diagnostics.loss)
    scanned, diagnostics = mk.train.run_steps(row.algorithm, outer, state, row.make_task, num_steps=3, meta_batch=2)
    np.testing.assert_allclose(diagnostics.loss, jnp.stack(losses), rtol=1e-9)
    # Adam divides by the gradient's size, so a rounding error in a vanishing gradient moves a weight by up to
    # the rate.
    assert_trees_close(scanned.learner, looped.learner, rtol=1e-6, atol=1e-8)


@each_in_slow_runs
def test_a_run_that_was_saved_and_loaded_continues_bit_for_bit(row, tmp_path):
    """Catches a leaf that a checkpoint loses, rounds or reorders."""
    outer = optimiser()

    def two_steps(state):
        return mk.train.run_steps(row.algorithm, outer, state, row.make_task, num_steps=2, meta_batch=2)[0]

    halfway = two_steps(mk.train.init(make_learner(row), outer, key=jax.random.key(5)))
    with mk.train.Checkpoints(tmp_path / "run", config={"learner": row.name}) as checkpoints:
        checkpoints.save(halfway)
    uninterrupted = two_steps(halfway)

    with mk.train.Checkpoints(tmp_path / "run") as checkpoints:
        template = mk.train.init(row.make_learner(jax.random.key(9)), outer, key=jax.random.key(8))
        loaded = checkpoints.restore(template)
    assert_trees_equal(two_steps(loaded), uninterrupted)


def interval(row, learner):
    if row.acting is not None:
        score = eqx.Partial(row.acting.score, learner)
        return mk.evaluate.student_t(mk.evaluate.scores_of(score, row.make_task, jax.random.key(6), num_tasks=1000))
    scores = mk.evaluate.scores(
        row.algorithm,
        learner,
        row.make_task,
        jax.random.key(6),
        num_tasks=1000,
        metrics={"score": row.metric},
    )
    return mk.evaluate.student_t(scores["score"])


@each_in_slow_runs
def test_adapting_or_training_helps(row):
    """Catches an adaptation that does nothing, or goes uphill: the 95 % intervals must be disjoint."""
    better = make_learner(row)
    if row.without is None:
        worse = better
        outer = optimiser()
        state = mk.train.init(better, outer, key=jax.random.key(5))
        state, _ = mk.train.run_steps(
            row.algorithm, outer, state, row.make_task, num_steps=row.training_steps, meta_batch=8
        )
        better = state.learner
    else:
        worse = row.without(better)
    with_it, without = interval(row, better), interval(row, worse)
    if row.metric is mk.metrics.mean_squared_error:
        assert with_it.high < without.low, f"{with_it} is not below {without}"
    else:
        assert with_it.low > without.high, f"{with_it} is not above {without}"


def change_x(task, change):
    return eqx.tree_at(lambda t: (t.support.x, t.query.x), task, replace_fn=change)


@each_of_episodes
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: jnp.concatenate([x, x], axis=1), id="shape"),
        pytest.param(lambda x: jnp.zeros(x.shape, "uint8"), id="dtype"),
        pytest.param(lambda x: x.reshape(x.shape[0], -1)[:, 0], id="rank"),
    ],
)
def test_wrong_inputs_raise(row, change):
    """Catches inputs that broadcast to a plausible loss: other features, raw uint8 pixels, a missing axis.

    A shape is a `ValueError`; a dtype is a `ValueError` or the type check's `TypeError`.
    """
    task = change_x(row.make_task(jax.random.key(3)), change)
    with pytest.raises((ValueError, TypeError), match=r"\["):
        row.algorithm.meta_loss(make_learner(row), task, jax.random.key(4))


@each_of_episodes
def test_one_query_without_its_axis_raises(row):
    """Catches `predict(adapted, one_image)` that takes the channels for examples."""
    task, key = row.make_task(jax.random.key(3)), jax.random.key(4)
    adapted = row.algorithm.adapt(make_learner(row), task.support, key)
    with pytest.raises((ValueError, TypeError)):
        row.algorithm.predict(adapted, task.query.x[0], key)


@each_of_episodes
def test_a_batch_of_tasks_is_refused_with_the_way_out(row):
    """Catches a task axis that is taken for examples, or an error that does not say that the caller maps."""
    with pytest.raises((ValueError, TypeError), match="vmap"):
        row.algorithm.meta_loss(make_learner(row), make_tasks(row, 3), jax.random.key(4))


@each_of_episodes
def test_padding_is_refused_or_without_effect(row):
    """Catches a learner that takes the padding of a `MaskedExamples` for data, which gives a plausible loss."""
    task, key = row.make_task(jax.random.key(3)), jax.random.key(4)
    # The example of a user's own learner has no type checks to refuse it.
    if row.name == "own_learner":
        return
    support = task.support
    mask = getattr(support, "mask", jnp.ones(len(support.x), bool))
    # One example more, far from all others, with a target of its own.
    x, y = (jnp.concatenate([part, 7 * part[:1] + 1]) for part in (support.x, support.y))
    y = y if support.way is None else y % support.way
    padded = mk.MaskedExamples(x, y, jnp.append(mask, False), way=support.way)
    for function, argument in (
        (row.algorithm.adapt, padded),
        (row.algorithm.meta_loss, mk.Episode(padded, task.query)),
    ):
        try:
            function(make_learner(row), argument, key)
        except (ValueError, TypeError):
            continue
        # Two programs of different shapes add up in another order.
        loss = row.algorithm.meta_loss(make_learner(row), mk.Episode(padded, task.query), key)
        np.testing.assert_allclose(loss, row.algorithm.meta_loss(make_learner(row), task, key), rtol=1e-10)


@each_classifier
def test_real_targets_for_a_classifier_raise(row):
    """Catches float labels that are rounded or one-hot encoded in silence; regression is another configuration."""
    task = row.make_task(jax.random.key(3))
    real = [mk.Examples(part.x, part.y.astype(part.x.dtype)) for part in (task.support, task.query)]
    key = jax.random.key(4)
    if row.regresses:  # so this is no mistake
        assert jnp.isfinite(row.algorithm.meta_loss(make_learner(row), mk.Episode(*real), key))
        return
    with pytest.raises((ValueError, TypeError)):
        row.algorithm.meta_loss(make_learner(row), mk.Episode(*real), key)


@each_classifier
def test_a_label_outside_the_classes_is_refused_and_never_a_number(row):
    """Catches a label of -1 or `way` that is clipped, wraps around to another class, or drops its example."""
    task = row.make_task(jax.random.key(3))
    # A one-hot encoding of the user's own learner is theirs; the library's learners show a wrong support label too.
    for part in ("query",) if row.name == "own_learner" else ("support", "query"):
        for wrong in (-1, task.query.way):

            def where(task, part=part):
                return getattr(task, part).y

            bad = eqx.tree_at(where, task, where(task).at[0].set(wrong))
            with pytest.raises(ValueError, match=rf"{part}\.y must hold labels"):
                mk.check_values(bad)
            assert not jnp.isfinite(row.algorithm.meta_loss(make_learner(row), bad, jax.random.key(4)))


@each_of_episodes
@pytest.mark.parametrize("part", ["support", "query"])
def test_nan_is_refused_and_never_a_number(row, part):
    """Catches NaN that a max, a where or an argmax swallows: the loss must show it, so that training stops."""
    task = row.make_task(jax.random.key(3))

    def where(tree):
        return getattr(tree, part).x

    bad = eqx.tree_at(where, task, where(task).at[0].set(jnp.nan))
    with pytest.raises(ValueError, match=rf"{part}\.x must be finite"):
        mk.check_values(bad)
    assert not jnp.isfinite(row.algorithm.meta_loss(make_learner(row), bad, jax.random.key(4)))


@each_in_slow_runs
def test_training_on_nan_stops_with_the_last_good_state(row):
    """Catches a run that goes on with a learner full of NaN."""
    outer = optimiser()

    def broken(key):
        task = row.make_task(key)
        spoil = lambda x: jnp.full_like(x, jnp.nan)
        return jax.tree.map(spoil, task) if row.acting else change_x(task, spoil)

    learner = make_learner(row)
    state = mk.train.init(learner, outer, key=jax.random.key(5))
    with pytest.raises(mk.train.NonFiniteLossError) as caught:
        mk.train.run_steps(row.algorithm, outer, state, broken, num_steps=2, meta_batch=2)
    assert_trees_equal(caught.value.state.learner, learner)
