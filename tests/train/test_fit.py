"""The training loop: events, the best learner, Ctrl-C, and NaN."""

import signal
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_toys import POINT, draw_point, leaves_equal, point

import metakit as mk
from metakit.train import Interrupted, Progress, Resumed, Saved, Validated

ADAM = optax.adam(0.1)


def start(optimiser=ADAM):
    return mk.train.init(point(), optimiser, key=jax.random.key(7))


def fit(state, num_steps, optimiser=ADAM, algorithm=POINT, sampler=draw_point, **options):
    options = {"meta_batch": 4} | options
    return mk.train.fit(algorithm, optimiser, state, sampler, num_steps=num_steps, **options)


def kinds(events):
    return [(type(event).__name__, event.step) for event in events]


def test_fit_is_run_steps():
    """Catches a loop that takes other steps than the function it is made of."""
    expected, diagnostics = mk.train.run_steps(POINT, ADAM, start(), draw_point, num_steps=6, meta_batch=4)
    result = fit(start(), 6, steps_per_dispatch=3)
    assert leaves_equal(result.state, expected)
    assert leaves_equal(result.best_learner, expected.learner)
    assert result.best_score is None
    assert not result.interrupted
    first, second = result.history
    np.testing.assert_allclose(first.loss, diagnostics.loss[:3].mean(), rtol=1e-12)
    np.testing.assert_allclose(second.gradient_norm, diagnostics.gradient_norm[3:].mean(), rtol=1e-12)


def test_num_steps_counts_steps_already_taken():
    """Catches a resumed run that trains for num_steps more."""
    result = fit(fit(start(), 4).state, 6)
    assert int(result.state.step) == 6
    assert leaves_equal(result.state, fit(start(), 6).state)


def test_events_come_in_order_and_speak_the_truth():
    """Catches a missing or doubled event, and a time left that does not fall to 0."""
    heard = []
    result = fit(
        start(), 6, steps_per_dispatch=1, validate=lambda learner: 1.0, validate_every=3, best="highest",
        on_event=heard.append,
    )  # fmt: skip
    assert tuple(heard) == result.history
    assert kinds(heard) == [
        ("Progress", 1), ("Progress", 2), ("Progress", 3), ("Validated", 3),
        ("Progress", 4), ("Progress", 5), ("Progress", 6), ("Validated", 6),
    ]  # fmt: skip
    progress = [event for event in heard if isinstance(event, Progress)]
    assert all(event.steps_per_second > 0 for event in progress)
    assert progress[-1].seconds_left == 0 < progress[-2].seconds_left


def test_the_last_step_is_validated_once():
    """Catches a best learner that was never compared with the last one."""
    result = fit(start(), 4, validate=lambda learner: 1.0, best="highest")
    assert kinds(result.history)[-1] == ("Validated", 4)


@pytest.mark.parametrize(
    ("scores", "best", "flags", "chosen"),
    [
        ([0.2, 0.9, 0.5], "highest", [True, True, False], 2),
        ([0.2, 0.9, 0.1], "lowest", [True, False, True], 3),
        ([0.5, 0.5, 0.5], "highest", [True, False, False], 1),
        ([float("nan"), 0.5, float("inf")], "highest", [False, True, False], 2),
        ([float("nan")] * 3, "lowest", [False] * 3, None),
    ],
)
def test_the_best_learner_is_kept(scores, best, flags, chosen):
    """Catches the last learner returned as the best, the wrong direction, and a NaN that wins or blocks."""
    seen, queue = [], iter(scores)

    def validate(learner):
        seen.append(np.asarray(learner.position))
        return next(queue)

    result = fit(start(), 6, validate=validate, validate_every=2, best=best)
    assert [event.is_best for event in result.history if isinstance(event, Validated)] == flags
    if chosen is None:
        assert result.best_score is None
    else:
        assert result.best_score == scores[chosen - 1]
        np.testing.assert_array_equal(result.best_learner.position, seen[chosen - 1])


@pytest.mark.parametrize(
    ("result", "options", "score"),
    [
        (0.25, {}, 0.25),
        (jnp.asarray(0.25), {}, 0.25),
        (np.float64(0.25), {}, 0.25),
        (SimpleNamespace(mean=0.25), {}, 0.25),
        ({"accuracy": SimpleNamespace(mean=0.25)}, {}, 0.25),
        ({"nll": 3.0, "accuracy": 0.25}, {"best_by": "accuracy"}, 0.25),
    ],
)
def test_what_validate_may_return(result, options, score):
    """Catches an interval or array from which no score is read."""
    found = fit(start(), 2, validate=lambda learner: result, best="highest", **options)
    assert found.best_score == score


@pytest.mark.parametrize(
    ("result", "options", "error", "message"),
    [
        ({"nll": 3.0, "accuracy": 0.25}, {}, ValueError, "best_by='nll'"),
        ({"accuracy": 0.25}, {"best_by": "acuracy"}, ValueError, "Did you mean 'accuracy'"),
        (0.25, {"best_by": "accuracy"}, ValueError, "mapping"),
        ("good", {}, TypeError, "validate must return a number"),
    ],
)
def test_what_validate_may_not_return(result, options, error, message):
    """Catches a score taken from an arbitrary entry."""
    with pytest.raises(error, match=message):
        fit(start(), 2, validate=lambda learner: result, best="highest", **options)


def press_ctrl_c_at(step):
    def on_event(event):
        if isinstance(event, Progress) and event.step == step:
            signal.raise_signal(signal.SIGINT)

    return on_event


def test_ctrl_c_finishes_the_dispatch_saves_and_resumes_the_same_run(tmp_path):
    """Catches a Ctrl-C that loses steps, and a resumed run that is another run."""
    expected = fit(start(), 8, steps_per_dispatch=2).state
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        stopped = fit(start(), 8, steps_per_dispatch=2, checkpoints=checkpoints, on_event=press_ctrl_c_at(4))
    assert stopped.interrupted
    assert kinds(stopped.history) == [("Progress", 2), ("Progress", 4), ("Saved", 4), ("Interrupted", 4)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        result = fit(start(), 8, steps_per_dispatch=2, checkpoints=checkpoints)
    assert kinds(result.history) == [("Resumed", 4), ("Progress", 6), ("Progress", 8), ("Saved", 8)]
    assert not result.interrupted
    assert leaves_equal(result.state, expected)


def test_a_second_ctrl_c_stops_at_once():
    """Catches a program that cannot be stopped while it compiles."""

    def twice(event):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(start(), 4, on_event=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_last_step_is_a_finished_run():
    """Catches a complete run that reports itself as interrupted."""
    result = fit(start(), 4, steps_per_dispatch=2, on_event=press_ctrl_c_at(4))
    assert not result.interrupted
    assert Interrupted(4) not in result.history


def test_fit_works_outside_the_main_thread():
    """Catches a signal handler installed where Python forbids it."""
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(start(), 2)))
    thread.start()
    thread.join()
    assert int(results[0].state.step) == 2


def test_nan_leaves_the_last_good_state_and_checkpoint(tmp_path):
    """Catches NaN weights written over the last good checkpoint."""
    # SGD moves the position by 1 a step; from 5 on the loss is NaN.
    loss = lambda w, task, key=None: jnp.where(w >= 4.5, jnp.nan, -10.0) * w + 0.0 * task
    algorithm, optimiser = mk.MetaLearner(None, None, loss), optax.sgd(0.1)

    def begin():
        return mk.train.init(jnp.zeros(()), optimiser, key=jax.random.key(0))

    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        with pytest.raises(mk.train.NonFiniteLossError, match="Step 5 ") as caught:
            fit(
                begin(), 8, optimiser, algorithm, jax.random.normal, steps_per_dispatch=2, save_every=2,
                checkpoints=checkpoints,
            )  # fmt: skip
        assert checkpoints.latest_step == 4
        np.testing.assert_allclose(checkpoints.restore(begin()).learner, 4.0)
    np.testing.assert_allclose(caught.value.state.learner, 5.0)


def test_the_best_learner_survives_a_resume(tmp_path):
    """Catches a resumed run that forgets a better learner from before."""
    scores = iter([0.9, 0.1, 0.5])
    options = {"validate": lambda learner: next(scores), "validate_every": 2, "best": "highest"}
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        first = fit(start(), 4, checkpoints=checkpoints, **options)
    assert kinds(first.history) == [
        ("Progress", 2), ("Validated", 2), ("Saved", 2), ("Progress", 4), ("Validated", 4), ("Saved", 4),
    ]  # fmt: skip
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        second = fit(start(), 6, checkpoints=checkpoints, **options)
    assert second.history[0] == Resumed(4)
    assert second.best_score == 0.9
    assert leaves_equal(second.best_learner, first.best_learner)


def test_a_finished_run_started_again_does_nothing(tmp_path):
    """Catches a rerun that trains on, or loses the result."""
    for _ in range(2):
        with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
            result = fit(start(), 4, checkpoints=checkpoints)
    assert result.history == (Resumed(4),)
    assert leaves_equal(result.state, fit(start(), 4).state)


def test_save_every_adds_checkpoints(tmp_path):
    """Catches a save that is skipped or doubled."""
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        result = fit(start(), 6, save_every=2, checkpoints=checkpoints)
    assert [event.step for event in result.history if isinstance(event, Saved)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("num_steps", "options", "message"),
    [
        (0, {}, "num_steps must be at least 1"),
        (4, {"meta_batch": 0}, "meta_batch must be at least 1"),
        (4, {"steps_per_dispatch": 3}, "divisor of 4"),
        (4, {"steps_per_dispatch": 0}, "divisor of 4"),
        (4, {"validate": float, "validate_every": 0, "best": "highest"}, "validate_every must be at least 1"),
        (4, {"validate": float}, '"highest" .* or the "lowest"'),
        (4, {"best": "highest"}, "need validate"),
        (4, {"save_every": 3, "steps_per_dispatch": 2}, "save_every=3"),
    ],
)
def test_wrong_arguments_are_named(num_steps, options, message):
    """Catches periods that silently never come."""
    with pytest.raises(ValueError, match=message):
        fit(start(), num_steps, **options)


def test_fewer_steps_than_taken_is_refused():
    """Catches a run that is silently longer than was asked for."""
    state = fit(start(), 4).state
    with pytest.raises(ValueError, match=r"num_steps=2 .* has taken 4"):
        fit(state, 2)


@pytest.mark.parametrize(
    ("num_steps", "periods", "size"),
    [(1000, {"validate_every": 250}, 50), (6, {"validate_every": 4}, 2), (7, {}, 7), (53, {}, 1)],
)
def test_the_default_dispatch_divides_every_period(num_steps, periods, size):
    """Catches a default under which a validation falls into the middle of a dispatch."""
    assert mk.train._fit._dispatch_size(num_steps, None, **periods) == size
