"""One step, many steps in one call, and what they leave alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_toys import POINT, REGRESSION, draw_line, draw_point, leaves_equal, point, point_loss, regressor

import metakit as mk
from metakit.train import _draw

ADAM = optax.adam(0.1)
SGD = optax.sgd(0.1)


def start(optimiser=ADAM, learner=None, **options):
    return mk.train.init(point() if learner is None else learner, optimiser, key=jax.random.key(7), **options)


def run(state, num_steps, optimiser=ADAM, **options):
    options = {"meta_batch": 4} | options
    return mk.train.run_steps(POINT, optimiser, state, draw_point, num_steps=num_steps, **options)


def test_one_step_of_sgd_is_the_hand_computed_one():
    """Catches a sum over tasks instead of a mean, or a wrong sign: p - 0.1 * 2 * (p - mean of tasks)."""
    tasks = jnp.asarray([[1.0, 0.0], [3.0, 4.0]])
    state, diagnostics = mk.train.step(POINT, SGD, start(SGD), tasks)
    expected = np.array([0.0, 1.0]) - 0.1 * 2 * (np.array([0.0, 1.0]) - np.array([2.0, 2.0]))
    np.testing.assert_allclose(state.learner.position, expected, rtol=1e-15)
    np.testing.assert_allclose(state.learner.offset.value, expected - [0.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(diagnostics.loss, ((1 + 1) + (9 + 9)) / 2, rtol=1e-15)
    # two leaves with the gradient 2 * (p - 2) each
    np.testing.assert_allclose(diagnostics.gradient_norm, np.sqrt(2 * (16 + 4)), rtol=1e-15)


def test_adam_matches_optax_by_hand():
    """Catches an optimiser state over other leaves than the trainable ones, or updates applied twice."""
    state = start()
    params = {"position": state.learner.position, "offset": state.learner.offset.value}
    opt_state = ADAM.init(params)
    for _ in range(5):
        tasks = mk.train.draw_tasks(draw_point, state, meta_batch=4)
        state, _ = mk.train.step(POINT, ADAM, state, tasks)
        gradient = 2 * (params["position"] + params["offset"] - tasks.mean(0))
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = ADAM.update(dict.fromkeys(params, gradient), opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.learner.position, params["position"], rtol=1e-12)
    np.testing.assert_allclose(state.learner.offset.value, params["offset"], rtol=1e-12)


def grouped(grouping):
    state = start()
    for steps in grouping:
        state, _ = run(state, steps)
    return state


@pytest.mark.parametrize("grouping", [[6], [2, 4], [3, 3]])
def test_grouping_steps_into_calls_changes_no_bit(grouping):
    """Catches keys taken from a per-call counter, and anything carried outside the state."""
    assert leaves_equal(grouped(grouping), grouped([6]))


def test_calls_of_one_step_differ_by_rounding_at_most():
    """Catches the same. XLA does away with a loop of one step, so its fused arithmetic may round otherwise.

    Six Adam steps of 0.1 near 1 in float64: a few units in the last place, 2e-16, are 1e-13 at the very most.
    """
    state, expected = grouped([1] * 6), grouped([6])
    assert int(state.step) == int(expected.step) == 6
    np.testing.assert_allclose(state.learner.position, expected.learner.position, rtol=1e-13)
    np.testing.assert_allclose(state.learner.offset.value, expected.learner.offset.value, rtol=1e-13)


def test_scan_of_steps_is_the_loop_of_steps_exactly():
    """Catches a step that behaves differently when it is itself traced inside a scan."""
    # Tasks and rate are small dyadic numbers, so that every order of operations gives the same bits.
    optimiser, tasks = optax.sgd(0.125), jnp.arange(24.0).reshape(3, 4, 2)
    looped = start(optimiser)
    for batch in tasks:
        looped, _ = mk.train.step(POINT, optimiser, looped, batch)

    @eqx.filter_jit
    def scanned(state):
        arrays, static = eqx.partition(state, eqx.is_array)

        def body(arrays, batch):
            new, diagnostics = mk.train.step(POINT, optimiser, eqx.combine(arrays, static), batch)
            return eqx.filter(new, eqx.is_array), diagnostics

        arrays, diagnostics = jax.lax.scan(body, arrays, tasks)
        return eqx.combine(arrays, static), diagnostics

    state, diagnostics = scanned(start(optimiser))
    assert leaves_equal(state, looped)
    assert diagnostics.loss.shape == (3,)


def test_run_steps_draws_what_draw_tasks_shows():
    """Catches a documented way to look at a step's tasks that shows others."""
    expected, many = run(start(), 4)
    state, losses = start(), []
    for _ in range(4):
        tasks = mk.train.draw_tasks(draw_point, state, meta_batch=4)
        state, diagnostics = mk.train.step(POINT, ADAM, state, tasks)
        losses.append(diagnostics.loss)
    # To rounding: the compiler fuses the drawing with the step in one of them.
    np.testing.assert_allclose(many.loss, jnp.stack(losses), rtol=1e-12)
    np.testing.assert_allclose(state.learner.position, expected.learner.position, rtol=1e-12)


@pytest.mark.parametrize(("room", "mesh"), [(8, None), (24, None), (48, None), (24, 2)])
def test_tasks_drawn_ahead_are_the_same(monkeypatch, room, mesh):
    """Catches steps that share their tasks, or take their neighbours': 6 steps drawn 1, 3 or 6 at a time."""
    monkeypatch.setattr(_draw, "_NUMBERS_AT_ONCE", room)
    sampler = lambda key: draw_point(key)  # another function, so that the room is not read from an earlier program
    state = start()
    options = {} if mesh is None else {"mesh": mk.sharding.task_mesh(mesh)}
    _, many = mk.train.run_steps(POINT, ADAM, state, sampler, num_steps=6, meta_batch=4, **options)
    assert _draw.steps_ahead(sampler, start(), 6, 4) == room // 8
    _, expected = run(start(), 6)
    np.testing.assert_allclose(many.loss, expected.loss, rtol=1e-12)


def test_every_step_draws_new_tasks():
    """Catches a key that does not depend on the step: the same tasks for ever."""
    _, diagnostics = run(start(optax.sgd(1e-9)), 5, optax.sgd(1e-9))
    assert len(np.unique(np.asarray(diagnostics.loss))) == 5


def test_frozen_leaves_keep_every_bit_and_have_no_optimiser_state():
    """Catches weight decay or momentum that reaches leaves which are not trainable."""
    optimiser = optax.adamw(0.1, weight_decay=0.5)
    state = start(optimiser)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if eqx.is_array(leaf) and leaf.ndim > 0]
    assert [leaf.shape for leaf in moments] == [(2,)] * 4  # mu and nu of position and offset
    state, _ = run(state, 3, optimiser)
    assert leaves_equal(state.learner.strength, point().strength)
    assert not leaves_equal(state.learner.position, point().position)


def test_a_trainable_function_decides_what_moves():
    """Catches a mask that is ignored after init."""
    head_only = lambda learner: eqx.tree_at(lambda x: x.position, mk.trainable(learner), False)
    state, _ = run(start(trainable=head_only), 3)
    assert leaves_equal(state.learner.position, point().position)
    assert not leaves_equal(state.learner.offset, point().offset)


def test_the_users_learner_survives_donation():
    """Catches init keeping the user's own buffers, which run_steps then deletes."""
    learner, key = point(), jax.random.key(7)
    state = mk.train.init(learner, ADAM, key=key)
    new, _ = run(state, 2)
    assert leaves_equal(learner, point())
    assert jax.random.key_data(key).shape == (2,)
    assert not new.learner.position.is_deleted()


def test_an_optimiser_that_keeps_the_parameters_can_be_donated():
    """Catches a state in which two leaves are one buffer: XLA refuses to donate it twice."""

    def init(params):
        return params

    optimiser = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, params))
    state, _ = run(start(optimiser), 2, optimiser)
    assert leaves_equal(state.opt_state.position.shape, (2,))


def test_one_trace_over_changed_leaves():
    """Catches a learner number that became static, or weakly typed, and compiles again for each value."""
    traces = 0

    def counted(learner, task, key=None):
        nonlocal traces
        traces += 1
        return point_loss(learner, task)

    algorithm = mk.MetaLearner(None, None, counted)
    for strength in (1.0, 2.0, 3.0):
        state = start(learner=eqx.tree_at(lambda x: x.strength, point(), mk.fixed(strength)))
        for _ in range(2):
            state, _ = mk.train.run_steps(algorithm, ADAM, state, draw_point, num_steps=2, meta_batch=4)
    assert traces == 1


def test_training_improves_a_meta_learner():
    """Catches the lot: after training, one step of adaptation leaves far less error."""
    optimiser = mk.train.adam(0.05)
    state = mk.train.init(regressor(), optimiser, key=jax.random.key(0))
    state, diagnostics = mk.train.run_steps(REGRESSION, optimiser, state, draw_line, num_steps=200, meta_batch=8)
    assert diagnostics.loss[-20:].mean() < 0.05 * diagnostics.loss[:5].mean()
    np.testing.assert_allclose(state.learner.weight, [1.0, 2.0, 3.0], atol=0.15)  # the mean of the tasks


def test_two_devices_give_the_same_learner():
    """Catches a gradient summed over devices, or tasks drawn per device index."""
    alone, first = run(start(), 5)
    spread, second = run(start(), 5, mesh=mk.sharding.task_mesh(2))
    np.testing.assert_allclose(spread.learner.position, alone.learner.position, rtol=1e-12)
    np.testing.assert_allclose(second.loss, first.loss, rtol=1e-12)
    continued, _ = run(spread, 3, mesh=mk.sharding.task_mesh(2))
    assert int(continued.step) == 8


@pytest.mark.optimised
def test_the_sharded_loop_needs_one_all_reduce():
    """Catches sampling or diagnostics that move tasks between devices."""
    mesh = mk.sharding.task_mesh(2)
    state = mk.sharding.replicate(start(), mesh)
    lower = eqx.filter_jit(mk.train._step._jit_run_steps.__wrapped__).lower
    fixed = (POINT, ADAM, draw_point, 3, 4, mesh, "auto", None, mk.train.step)
    compiled = lower(fixed, state).compile().compiled.as_text()
    assert compiled.count(" all-reduce(") + compiled.count(" all-reduce-start(") == 1
    assert "all-gather" not in compiled


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_chunks_change_nothing(chunk):
    """Catches a chunked mean that weighs an incomplete last chunk like a full one."""
    expected, _ = run(start(), 3)
    state, _ = run(start(), 3, chunk=chunk)
    np.testing.assert_allclose(state.learner.position, expected.learner.position, rtol=1e-12)


def test_anneal_runs_before_the_gradient_with_the_step():
    """Catches annealing after the gradient, by a stale step, or lost from the state."""

    def anneal(learner, step):
        return eqx.tree_at(lambda x: x.strength.value, learner, step.astype(jnp.float64) + 1.0)

    tasks = jnp.asarray([[1.0, 1.0]])
    state = start(SGD)
    for step in range(3):
        gap = np.asarray(state.learner.position + state.learner.offset.value) - 1.0
        state, diagnostics = mk.train.step(POINT, SGD, state, tasks, anneal=anneal)
        np.testing.assert_allclose(diagnostics.loss, 0.5 * (step + 1) * np.sum(gap**2), rtol=1e-12)
        assert float(state.learner.strength.value) == step + 1


def test_anneal_that_changes_the_learner_is_refused():
    """Catches an obscure scan error about carry types."""
    with pytest.raises(ValueError, match="anneal"):
        run(start(), 2, anneal=lambda learner, step: learner.position)


def explode_at(step):
    """A loss that is NaN from the given position on: SGD moves it by 1 a step."""

    def loss(learner, task, key=None):
        return jnp.where(learner >= step - 0.5, jnp.nan, -10.0) * learner + 0.0 * task

    return mk.MetaLearner(None, None, loss)


@pytest.mark.parametrize("step", [0, 3])
def test_nan_stops_at_the_step_and_keeps_the_state_before(step):
    """Catches NaN that is stepped over, applied, or reported under another step."""
    state = mk.train.init(jnp.zeros(()), SGD, key=jax.random.key(0))
    with pytest.raises(mk.train.NonFiniteLossError, match=rf"Step {step} .*clip_norm") as caught:
        mk.train.run_steps(explode_at(step), SGD, state, jax.random.normal, num_steps=6, meta_batch=2)
    assert (caught.value.step, int(caught.value.state.step)) == (step, step)
    assert np.isnan(caught.value.loss)
    np.testing.assert_allclose(caught.value.state.learner, step, rtol=1e-12)


def test_step_reports_what_is_not_finite_and_keeps_its_state():
    """Catches a step that returns NaN weights to whoever runs his own loop."""
    state = mk.train.init(jnp.zeros(()), SGD, key=jax.random.key(0))
    new, diagnostics = mk.train.step(explode_at(0), SGD, state, jnp.ones(2))
    assert not diagnostics.finite
    assert leaves_equal(new, state)


def test_an_update_that_overflows_counts_as_not_finite():
    """Catches a finite loss whose update makes the learner infinite: only the next step would notice."""
    optimiser = optax.sgd(1e308)
    with pytest.raises(mk.train.NonFiniteLossError, match="Step 0"):
        run(
            start(optimiser, learner=eqx.tree_at(lambda x: x.position, point(), jnp.full(2, 1e3))),
            2,
            optimiser,
        )


def test_the_optimiser_may_read_the_loss():
    """Catches an update without `value`, which reduce_on_plateau cannot do without."""
    optimiser = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    with jax.enable_x64(False):  # optax's plateau state changes dtype under x64
        learner = point(dtype=jnp.float32)
        state = mk.train.init(learner, optimiser, key=jax.random.key(0))
        state, _ = mk.train.run_steps(
            POINT, optimiser, state, lambda key: jax.random.normal(key, (2,)), num_steps=3, meta_batch=2
        )
    assert int(state.step) == 3


def test_float32_stays_float32():
    """Catches a float64 constant that promotes the learner where both precisions are enabled."""
    learner = point(dtype=jnp.float32)
    optimiser = mk.train.adam(0.1, schedule="cosine", num_steps=10, clip_norm=1.0)
    state = mk.train.init(learner, optimiser, key=jax.random.key(0))
    state, diagnostics = mk.train.run_steps(
        POINT,
        optimiser,
        state,
        lambda key: jax.random.normal(key, (2,), jnp.float32),
        num_steps=3,
        meta_batch=2,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((state.learner, diagnostics.loss))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run(start(), 0), "num_steps must be at least 1"),
        (lambda: run(start(), 1, meta_batch=0), "meta_batch must be at least 1"),
        (lambda: run(start(), 1, chunk=0), "chunk"),
        (lambda: run(start(), 1, meta_batch=3, mesh=mk.sharding.task_mesh(2)), "3 tasks"),
        (lambda: start(trainable=lambda learner: True), "structure"),
        (lambda: start(trainable=lambda learner: jax.tree.map(lambda _: False, learner)), "nothing to train"),
        (
            lambda: start(learner={"n": jnp.arange(2)}, trainable=lambda learner: {"n": True}),
            r"learner\['n'\], which is int64\[2\]",
        ),
        (
            lambda: mk.train.step(POINT, SGD, start(SGD), {"a": jnp.ones(2), "b": jnp.ones(3)}),
            "leading task axis",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    """Catches an error from the middle of a trace instead of one about the argument."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "use",
    [
        lambda state: run(state, 1),
        lambda state: mk.train.step(POINT, ADAM, state, jnp.ones((2, 2))),
        lambda state: mk.train.fit(POINT, ADAM, state, draw_point, num_steps=4, meta_batch=2),
        lambda state: mk.train.with_learner(state, state.learner),
        lambda state: mk.train.TrustRegion()(POINT, ADAM, state, jnp.ones((2, 2))),
        lambda state: mk.train.Epochs()(POINT, ADAM, state, jnp.ones((2, 2))),
    ],
)
def test_a_state_that_was_used_before_is_named(use):
    """Catches "Array has been deleted" from inside JAX, which says nothing of what to do."""
    state = start()
    run(state, 1)
    with pytest.raises(ValueError, match=r"state was used before.*Go on with the one that they return"):
        use(state)


def test_a_samplers_class_is_named():
    """Catches parentheses left out: called with a key, the class would make a sampler of it."""
    with pytest.raises(TypeError, match=r"sampler .* got the class Sinusoid\. Call it first: Sinusoid\(\.\.\.\)"):
        mk.train.run_steps(mk.maml, ADAM, start(), mk.tasks.Sinusoid, num_steps=1, meta_batch=2)


class Goal(eqx.Module):
    place: jax.Array

    def __init__(self, key):
        self.place = jax.random.normal(key, (2,))


def test_a_class_of_tasks_is_a_sampler():
    """Catches a refusal of every class: one that a key makes a task of draws tasks."""
    algorithm = mk.MetaLearner(None, None, lambda learner, task, key=None: point_loss(learner, task.place))
    _, diagnostics = mk.train.run_steps(algorithm, ADAM, start(), Goal, num_steps=2, meta_batch=3)
    assert jnp.all(jnp.isfinite(diagnostics.loss))


def test_a_learner_in_place_of_the_algorithm_is_named():
    """Catches arguments in the wrong order."""
    with pytest.raises(TypeError, match="algorithm must hold adapt, predict and meta_loss"):
        mk.train.step(point(), SGD, start(SGD), jnp.ones((2, 2)))
