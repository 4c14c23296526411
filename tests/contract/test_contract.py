"""What every learner must hold, row by row of learners.py: the checks of `mk.testing`, and what only the suite asks."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
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


@functools.cache
def _subject(name):
    row = next(row for row in ROWS if row.name == name)
    return mk.testing.Subject(
        row.algorithm,
        row.make_learner(jax.random.key(0)),
        row.make_task,
        metric=row.metric,
        lower_is_better=row.metric is mk.metrics.mean_squared_error,
        without=row.without,
        training_steps=row.training_steps,
        gradient=row.meta_gradient,
        questions=None if row.acting is None else functools.partial(questions, row),
        score=None if row.acting is None else row.acting.score,
    )


def subject(row):
    """One a row: what several checks compare with is computed once."""
    return _subject(row.name)


def questions(row, learner, task, key):
    data = row.algorithm.collect(learner, task, key)
    return row.acting.support(data), row.acting.x(data)


def make_learner(row):
    return subject(row).learner


def change_x(task, change):
    return eqx.tree_at(lambda t: (t.support.x, t.query.x), task, replace_fn=change)


@each
def test_it_is_an_algorithm(row):
    """Catches a signature that only works by keyword, and outputs of another shape than metrics expect."""
    mk.testing.is_an_algorithm(subject(row))
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
    outputs = jax.tree.leaves(eqx.filter_eval_shape(subject(row).predictions, make_learner(row), task, key))
    if row.acting is None:
        n, way = len(task.query.x), task.query.way
        assert {output.shape for output in outputs} == {task.query.y.shape if way is None else (n, way)}
    loss = eqx.filter_eval_shape(row.algorithm.meta_loss, make_learner(row), task, key)
    assert {loss.dtype, *(output.dtype for output in outputs)} == {jnp.dtype("float64")}


@each
def test_every_number_is_a_strongly_typed_array(row):
    """Catches a Python float in a learner (no gradient) and a weak type (a second trace after the first update)."""
    mk.testing.numbers_are_arrays(subject(row))


@each_in_slow_runs
def test_it_is_pure(row):
    """Catches state that a call changes."""
    mk.testing.is_pure(subject(row))


@each
def test_jit_equals_eager(row):
    """Catches Python branches on values, and state that a trace freezes."""
    mk.testing.jit_equals_eager(subject(row))


@each
def test_vmap_over_tasks_equals_a_loop(row):
    """Catches a function that mixes tasks, or that counts a task axis as examples."""
    mk.testing.vmap_equals_loop(subject(row))


@each_optimised
def test_vmap_equals_a_loop_in_optimised_programs(row):
    """Catches a derivative that is right only as long as XLA does not fuse it: max-pooling's once was not."""
    mk.testing.vmap_equals_loop(subject(row))


@each
def test_the_key_matters_exactly_where_the_row_says_so(row):
    """Catches hidden randomness, and a stochastic learner that runs without its key."""
    mk.testing.randomness_comes_from_the_key(subject(row))
    loss, task = eqx.filter_jit(row.algorithm.meta_loss), row.make_task(jax.random.key(3))
    first, second = (loss(make_learner(row), task, jax.random.key(i)) for i in range(2))
    assert (first != second) == row.random


@each
def test_the_meta_gradient_is_right(row):
    """Catches a dropped second order, a stop-gradient in the wrong place, and leaves without their gradient."""
    mk.testing.meta_gradient_equals_differences(subject(row))


@each_optimised
def test_the_meta_gradient_is_right_in_optimised_programs(row):
    """Catches an adjoint that rounds or reorders otherwise once XLA fuses it, in a learner that uses it."""
    mk.testing.meta_gradient_equals_differences(subject(row))


@each_in_slow_runs
def test_the_gradient_of_a_mean_is_the_mean_of_gradients(row):
    """Catches tasks that leak into each other's gradient under vmap."""
    mk.testing.gradient_of_mean_equals_mean_of_gradients(subject(row))


@each_in_slow_runs
@pytest.mark.parametrize("way", ["shard_map", "pmap", "NamedSharding"])
def test_two_devices_equal_one(row, way):
    """Catches a learner that is wrong only when tasks are spread: closed-over devices, inner gradients summed."""
    mk.testing.devices_agree(subject(row), ways=(way,))


@each
def test_one_task_at_a_time_equals_all_at_once(row):
    """Catches a difference between the mapped and the plain form of an operation, such as per-task convolution."""
    mk.testing.one_at_a_time_equals_all_at_once(subject(row))


@each
def test_one_trace_over_changed_leaves(row):
    """Catches numbers that are part of the program: a new rate, or the second training step, would compile again."""
    mk.testing.one_trace_over_changed_leaves(subject(row))


@each_in_slow_runs
def test_a_scan_of_training_steps_equals_a_loop(row):
    """Catches a learner whose structure, dtypes or numbers change under training inside `lax.scan`."""
    mk.testing.scan_equals_loop(subject(row))


@each_in_slow_runs
def test_a_run_that_was_saved_and_loaded_continues_bit_for_bit(row):
    """Catches a leaf that a checkpoint loses, rounds or reorders."""
    mk.testing.resumes_bit_for_bit(subject(row))


@each_in_slow_runs
def test_adapting_or_training_helps(row):
    """Catches an adaptation that does nothing, or goes uphill: the 95 % intervals must be disjoint."""
    if row.without is None:
        mk.testing.training_helps(subject(row))
    else:
        mk.testing.adaptation_helps(subject(row))


@each_of_episodes
@pytest.mark.parametrize("change", ["features", "dtype", "rank"])
def test_wrong_inputs_raise(row, change):
    """Catches inputs that broadcast to a plausible loss: other features, raw uint8 pixels, a missing axis.

    A shape is a `ValueError`; a dtype is a `ValueError` or the type check's `TypeError`.
    """
    (message,) = mk.testing.wrong_inputs_raise(subject(row), changes=(change,))
    assert "[" in message, "an error that names no shape"


@each_of_episodes
def test_one_query_without_its_axis_raises(row):
    """Catches `predict(adapted, one_image)` that takes the channels for examples."""
    mk.testing.one_query_without_its_axis_raises(subject(row))


@each_of_episodes
def test_a_batch_of_tasks_is_refused_with_the_way_out(row):
    """Catches a task axis that is taken for examples, or an error that does not say that the caller maps."""
    assert "vmap" in mk.testing.a_batch_of_tasks_is_refused(subject(row))


@each_of_episodes
def test_padding_is_refused_or_without_effect(row):
    """Catches a learner that takes the padding of a `MaskedExamples` for data, which gives a plausible loss."""
    # The example of a user's own learner has no type checks to refuse it.
    if row.name == "own_learner":
        return
    mk.testing.padding_is_refused_or_without_effect(subject(row))


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
    # A one-hot encoding of the user's own learner is theirs; the library's learners show a wrong support label too.
    parts = ("query",) if row.name == "own_learner" else ("support", "query")
    mk.testing.wrong_labels_are_never_a_number(subject(row), parts=parts)
    task = row.make_task(jax.random.key(3))
    for part in parts:
        bad = eqx.tree_at(lambda task, part=part: getattr(task, part).y, task, replace_fn=lambda y: y.at[0].set(-1))
        with pytest.raises(ValueError, match=rf"{part}\.y must hold labels"):
            mk.check_values(bad)


@each_of_episodes
def test_nan_is_never_a_number(row):
    """Catches NaN that a max, a where or an argmax swallows: the loss must show it, so that training stops."""
    mk.testing.nan_is_never_a_number(subject(row))


@pytest.mark.parametrize("part", ["support", "query"])
def test_nan_is_refused_where_data_enters(part):
    """Catches NaN that the check of values does not see, or does not name."""
    row = next(row for row in ROWS if row.acting is None)
    bad = eqx.tree_at(
        lambda task: getattr(task, part).x, row.make_task(jax.random.key(3)), replace_fn=lambda x: x.at[0].set(jnp.nan)
    )
    with pytest.raises(ValueError, match=rf"{part}\.x must be finite"):
        mk.check_values(bad)


@each_in_slow_runs
def test_training_on_nan_stops_with_the_last_good_state(row):
    """Catches a run that goes on with a learner full of NaN."""
    outer = optax.adam(1e-2)

    def broken(key):
        task = row.make_task(key)
        spoil = lambda x: jnp.full_like(x, jnp.nan)
        return jax.tree.map(spoil, task) if row.acting else change_x(task, spoil)

    learner = make_learner(row)
    state = mk.train.init(learner, outer, key=jax.random.key(5))
    with pytest.raises(mk.train.NonFiniteLossError) as caught:
        mk.train.run_steps(row.algorithm, outer, state, broken, num_steps=2, meta_batch=2)
    assert eqx.tree_equal(caught.value.state.learner, learner)
