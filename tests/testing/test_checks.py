"""Each check catches the learner whose fault it names, and says so."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

LINES = mk.tasks.LinearRegression(shot=4, queries=3)


class Shift(eqx.Module):
    """Predicts the mean target of the support set, scaled and shifted."""

    scale: mk.Hyperparameter
    shift: mk.Hyperparameter

    def __init__(self):
        self.scale, self.shift = mk.learned(0.7), mk.learned(0.1)


def adapt(learner, support, key=None):
    if support.x.ndim != 2 or support.x.shape[1] != 1 or not isinstance(support, mk.Examples):
        raise ValueError(f"support.x must be [n, 1] of mk.Examples, got {support.x.shape}; eqx.filter_vmap maps tasks.")
    centre = learner.scale.value * jnp.mean(support.y + 0 * support.x, axis=0)
    return centre + learner.shift.value


def predict(adapted, x, key=None):
    if x.ndim != 2 or x.shape[1] != 1:
        raise ValueError(f"x must be [n, 1], got {x.shape}.")
    return adapted[None] + 0 * x


def meta_loss(learner, task, key=None):
    outputs = predict(adapt(learner, task.support, key), task.query.x)
    return mk.losses.squared_error(outputs, task.query.y, reduction="mean")


def algorithm(adapt=adapt, predict=predict, meta_loss=meta_loss):
    return mk.MetaLearner(adapt, predict, meta_loss)


def loss_after(own_adapt):
    """The meta-loss of another `adapt`."""

    def loss(learner, task, key=None):
        outputs = predict(own_adapt(learner, task.support, key), task.query.x)
        return mk.losses.squared_error(outputs, task.query.y, reduction="mean")

    return algorithm(adapt=own_adapt, meta_loss=loss)


# Broken in one way each


@jax.custom_batching.custom_vmap
def first_of_the_batch(y):
    return y


@first_of_the_batch.def_vmap
def _(axis_size, in_batched, y):
    return jnp.broadcast_to(y[:1], y.shape), True


def ignores_vmap(learner, support, key=None):
    return adapt(learner, eqx.tree_at(lambda s: s.y, support, replace_fn=first_of_the_batch))


def loss_of_each_example(learner, task, key=None):
    outputs = predict(adapt(learner, task.support), task.query.x)
    return mk.losses.squared_error(outputs, task.query.y, reduction="none")


GLOBAL_KEY = jax.random.key(0)
OLD_GLOBAL_KEY = jax.random.PRNGKey(0)


def reuses_a_global_key(learner, support, key=None):
    return adapt(learner, support) + 0.1 * jax.random.normal(GLOBAL_KEY, (1,), support.x.dtype)


def reuses_an_old_global_key_in_a_scan(learner, support, key=None):
    def add(total, _):
        return total + 0.1 * jax.random.normal(OLD_GLOBAL_KEY, (1,), support.x.dtype), None

    return jax.lax.scan(add, adapt(learner, support), None, length=2)[0]


def makes_its_own_key(learner, support, key=None):
    return adapt(learner, support) + 0.1 * jax.random.normal(jax.random.key(7), (1,), support.x.dtype)


def needs_a_key_and_is_silent(learner, support, key=None):
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, (1,), support.x.dtype)
    return adapt(learner, support) + noise


CALLS = []


def counts_its_calls(learner, support, key=None):
    CALLS.append(1)
    return adapt(learner, support) + 0.01 * len(CALLS)


def branches_on_a_value(learner, support, key=None):
    return adapt(learner, support) * (1.0 if support.y[0, 0] > 0 else 0.5)


def stops_the_gradient(learner, support, key=None):
    return jax.lax.stop_gradient(learner.scale.value) * jnp.mean(support.y, axis=0) + learner.shift.value


def closes_over_the_learner():
    held = Shift()
    return loss_after(lambda learner, support, key=None: adapt(held, support))


def swallows_nan(learner, support, key=None):
    return adapt(learner, eqx.tree_at(lambda s: (s.x, s.y), support, replace_fn=jnp.nan_to_num))


def takes_padding_for_data(learner, support, key=None):
    return adapt(learner, mk.Examples(support.x, support.y))


def takes_any_shape(learner, support, key=None):
    return learner.scale.value * jnp.mean(support.y) + learner.shift.value


def predicts_any_shape(adapted, x, key=None):
    return jnp.broadcast_to(adapted, (len(x), 1))


def loss_of_any_shape(learner, task, key=None):
    return jnp.mean((takes_any_shape(learner, task.support) - task.query.y) ** 2)


any_shape = algorithm(takes_any_shape, predicts_any_shape, loss_of_any_shape)


def is_written_in_float32(learner, support, key=None):
    return jnp.asarray(adapt(learner, support), jnp.float32)


def loss_in_float32(learner, task, key=None):
    adapted = is_written_in_float32(learner, task.support)
    return jnp.mean((adapted[None] - task.query.y.astype("float32")) ** 2)


def ignores_its_support(learner, support, key=None):
    return learner.shift.value + 0 * jnp.mean(support.y + 0 * support.x, axis=0)


def keyword_only(learner, support, *, key=None):
    return adapt(learner, support)


class WithAFloat(Shift):
    rate: float

    def __init__(self):
        super().__init__()
        self.rate = 0.4


class WithAFunction(Shift):
    activation: object

    def __init__(self):
        super().__init__()
        self.activation = jnp.tanh


class WeaklyTyped(Shift):
    number: jax.Array

    def __init__(self):
        super().__init__()
        self.number = jnp.asarray(0.5)


BROKEN = {
    "a key by name only": (algorithm(adapt=keyword_only), Shift, "is_an_algorithm", "a key as the third"),
    "no scalar": (algorithm(meta_loss=loss_of_each_example), Shift, "is_an_algorithm", "one floating-point number"),
    "one output": (algorithm(predict=lambda a, x, key=None: a), Shift, "is_an_algorithm", "for 3 inputs"),
    "a Python float": (algorithm(), WithAFloat, "numbers_are_arrays", "learner.rate is the float 0.4"),
    "a weak type": (algorithm(), WeaklyTyped, "numbers_are_arrays", "weakly typed"),
    "a function as a leaf": (algorithm(), WithAFunction, "takes_bare_transforms", "learner.activation"),
    "float32": (algorithm(is_written_in_float32, predict, loss_in_float32), Shift, "runs_in_float64", "float32"),
    "impure": (loss_after(counts_its_calls), Shift, "is_pure", "Two calls"),
    "a global key": (loss_after(reuses_a_global_key), Shift, "randomness_comes_from_the_key", "key of its own"),
    "an old global key": (
        loss_after(reuses_an_old_global_key_in_a_scan), Shift, "randomness_comes_from_the_key", "key of its own",
    ),
    "its own key": (loss_after(makes_its_own_key), Shift, "randomness_comes_from_the_key", "key of its own"),
    "silent without a key": (
        loss_after(needs_a_key_and_is_silent), Shift, "randomness_comes_from_the_key", "runs without one",
    ),
    "a branch on a value": (loss_after(branches_on_a_value), Shift, "jit_equals_eager", "TracerBool"),
    "deaf to vmap": (loss_after(ignores_vmap), Shift, "vmap_equals_loop", "Under vmap task 1"),
    "deaf to vmap, by its gradient": (
        loss_after(ignores_vmap), Shift, "one_at_a_time_equals_all_at_once", "One task at a time",
    ),
    "a stopped gradient": (
        loss_after(stops_the_gradient), Shift, "meta_gradient_equals_differences", "learner.scale.value",
    ),
    "a closure": (
        closes_over_the_learner(), Shift, "meta_gradient_equals_differences", "does not depend on the learner",
    ),
    "a number in the program": (
        algorithm(), WithAFloat, "one_trace_over_changed_leaves", "traced 2 times",
    ),
    "a constant loss": (
        algorithm(meta_loss=lambda learner, task, key=None: jnp.zeros(())), Shift, "one_trace_over_changed_leaves",
        "has the same loss",
    ),
    "NaN swallowed": (loss_after(swallows_nan), Shift, "nan_is_never_a_number", "support.x holds NaN"),
    "padding as data": (
        loss_after(takes_padding_for_data), Shift, "padding_is_refused_or_without_effect", "one example of padding",
    ),
    "any shape": (any_shape, Shift, "wrong_inputs_raise", "wrong features"),
    "one query": (any_shape, Shift, "one_query_without_its_axis_raises", "without its axis"),
    "a batch of tasks": (any_shape, Shift, "a_batch_of_tasks_is_refused", "three tasks"),
    "no adaptation": (loss_after(ignores_its_support), Shift, "adaptation_helps", "Adaptation does not help"),
}  # fmt: skip


def subject(broken_algorithm, make_learner, sampler=LINES):
    return mk.testing.Subject(
        broken_algorithm, make_learner(), sampler, metric=mk.metrics.mean_squared_error, lower_is_better=True
    )


def outcome(check, of):
    return getattr(mk.testing, check)(of)


@pytest.mark.parametrize("fault", BROKEN)
def test_the_check_that_names_a_fault_catches_it(fault):
    """Catches a check that cannot fail, or that fails for another reason than the fault."""
    broken, make_learner, check, words = BROKEN[fault]
    with pytest.raises(mk.testing.CheckFailed) as caught:
        outcome(check, subject(broken, make_learner))
    assert words in caught.value.found
    assert caught.value.advice.endswith(".")


@pytest.mark.parametrize("check", sorted({row[2] for row in BROKEN.values()}))
def test_the_sound_learner_passes_every_check(check):
    """Catches a check that fails whatever it is given: the faults above are changes of this learner."""
    outcome(check, subject(algorithm(), Shift))


TRACES = []


def changes_with_each_trace(learner, support, key=None):
    if isinstance(support.y, jax.core.Tracer):
        TRACES.append(1)
        return adapt(learner, support) + 0.1 * len(TRACES)
    return adapt(learner, support)


@pytest.mark.parametrize("check", ["scan_equals_loop", "devices_agree", "jit_equals_eager"])
def test_what_a_trace_freezes_is_caught_in_every_loop(check):
    """Catches comparisons of a program with itself: each of these must run two programs, which differ here."""
    with pytest.raises(mk.testing.CheckFailed):
        outcome(check, subject(loss_after(changes_with_each_trace), Shift))


def test_a_leaf_that_a_checkpoint_loses_is_caught(monkeypatch):
    """Catches a comparison of one run with itself: here what is loaded is the template."""
    monkeypatch.setattr(mk.train.Checkpoints, "restore", lambda self, template: template)
    with pytest.raises(mk.testing.CheckFailed, match="training goes on otherwise"):
        mk.testing.resumes_bit_for_bit(subject(algorithm(), Shift))


def test_a_training_that_goes_nowhere_is_caught():
    """Catches `training_helps` that compares a learner with itself, or the wrong way round."""
    uphill = algorithm(meta_loss=lambda learner, task, key=None: -meta_loss(learner, task))
    of = mk.testing.Subject(
        uphill, Shift(), LINES, metric=mk.metrics.mean_squared_error, lower_is_better=True, training_steps=50
    )
    with pytest.raises(mk.testing.CheckFailed, match="Training does not help"):
        mk.testing.training_helps(of)


def test_wrong_labels_that_drop_out_are_caught():
    """Catches a one-hot encoding that turns a label of -1 into no label, in the support set alone."""

    def one_hot_mean(learner, support, key=None):
        member = jax.nn.one_hot(support.y, support.way, dtype=support.x.dtype)
        return (member.T @ support.x.reshape(len(support.x), -1)) * learner.scale.value

    def nearest(adapted, x, key=None):
        return x.reshape(len(x), -1) @ adapted.T

    def loss(learner, task, key=None):
        return mk.losses.cross_entropy(
            nearest(one_hot_mean(learner, task.support), task.query.x), task.query.y, reduction="mean"
        )

    tasks = mk.tasks.Episodes(mk.tasks.ImagePool(np.arange(48, dtype="uint8").reshape(3, 4, 1, 2, 2)), 2, 1, 1)
    of = subject(algorithm(one_hot_mean, nearest, loss), Shift, tasks)
    mk.testing.wrong_labels_are_never_a_number(of, parts=("query",))
    with pytest.raises(mk.testing.CheckFailed, match=r"support\.y holds the label -1"):
        mk.testing.wrong_labels_are_never_a_number(of)


class TestReport:
    @pytest.fixture(scope="class")
    @staticmethod
    def report():
        return mk.testing.check(algorithm(), Shift(), LINES, skip=("takes_bare_transforms",))

    def test_a_sound_learner_is_ok_whole(self, report):
        """Catches a battery that fails, or breaks off, on a learner without a fault."""
        assert report.ok, str(report)
        assert [row.check for row in report.rows] == list(mk.testing.check_names())
        report.require()

    def test_what_was_not_made_says_why(self, report):
        """Catches a check that is left out in silence."""
        skipped = {row.check: row.found for row in report.rows if row.outcome == "skipped"}
        assert set(skipped) == {
            "takes_bare_transforms", "adaptation_helps", "training_helps", "wrong_labels_are_never_a_number",
        }  # fmt: skip
        assert "metric=" in skipped["adaptation_helps"]
        assert "real" in skipped["wrong_labels_are_never_a_number"]

    def test_it_prints_a_line_a_check(self, report):
        """Catches a report that wraps, or that leaves a check out."""
        lines = str(report).splitlines()
        assert len(lines) == 1 + len(report.rows)
        assert lines[0] == "MetaLearner: 19 checks hold, 0 failed, 4 skipped"
        assert all(row.check in line for row, line in zip(report.rows, lines[1:], strict=True))

    def test_after_the_first_fault_of_form_nothing_else_runs(self):
        """Catches twenty lines with the same error, where the form of the functions is wrong."""
        report = mk.testing.check(algorithm(meta_loss=loss_of_each_example), Shift(), LINES)
        assert not report.ok
        assert [row.check for row in report.failed] == ["is_an_algorithm"]
        assert all(row.outcome == "skipped" for row in report.rows[1:])
        with pytest.raises(AssertionError, match="FAILED   is_an_algorithm: meta_loss returned"):
            report.require()

    def test_one_device_is_skipped_with_the_reason(self, monkeypatch):
        """Catches a failure, or silence, on a machine with one device."""
        one = jax.devices()[:1]
        monkeypatch.setattr(jax, "devices", lambda *args: one)
        with pytest.raises(mk.testing.CheckSkipped, match="XLA_FLAGS"):
            mk.testing.devices_agree(subject(algorithm(), Shift))

    def test_outside_float64_it_brings_its_own(self):
        """Catches differences in float32, whose rounding hides a wrong gradient, and a context that leaks."""
        with jax.enable_x64(False):
            of = subject(algorithm(), Shift, mk.tasks.LinearRegression(shot=4, queries=3))
            assert of.learner.scale.value.dtype == jnp.float32
            mk.testing.meta_gradient_equals_differences(of)
            assert of.exact.learner.scale.value.dtype == jnp.float64
            assert jnp.zeros(()).dtype == jnp.float32

    def test_a_learner_that_is_written_in_float32_is_still_checked(self):
        """Catches tolerances of float64 for a learner that computes in float32."""
        with jax.enable_x64(False):
            sampler = mk.tasks.LinearRegression(shot=4, queries=3)
            of = subject(algorithm(is_written_in_float32, predict, loss_in_float32), Shift, sampler)
            assert of.exact is of
            mk.testing.jit_equals_eager(of)
            with pytest.raises(mk.testing.CheckSkipped, match="runs_in_float64"):
                mk.testing.meta_gradient_equals_differences(of)


OF_EPISODES = [
    "wrong_inputs_raise", "one_query_without_its_axis_raises", "a_batch_of_tasks_is_refused",
    "padding_is_refused_or_without_effect", "wrong_labels_are_never_a_number", "nan_is_never_a_number",
]  # fmt: skip


def test_tasks_that_are_no_episodes_are_checked_too():
    """Catches checks that only know episodes: what a task is, the three functions agree on."""
    targets = mk.MetaLearner(
        adapt=lambda learner, support, key=None: learner.shift.value * support,
        predict=lambda adapted, x, key=None: jnp.broadcast_to(adapted, x.shape),
        meta_loss=lambda learner, task, key=None: (learner.scale.value * learner.shift.value - task) ** 2,
    )
    report = mk.testing.check(
        targets,
        Shift(),
        jax.random.normal,
        questions=lambda learner, task, key: (task, jnp.ones(3, task.dtype)),
        score=lambda learner, task, key: -((learner.shift.value - task) ** 2),
        without=lambda learner: eqx.tree_at(lambda l: l.shift.value, learner, jnp.full((), 9.0)),
        num_tasks=20,
    )
    assert report.ok, str(report)
    skipped = {row.check for row in report.rows if row.outcome == "skipped"}
    assert skipped == {*OF_EPISODES, "training_helps"}


WRONG = [
    pytest.param(lambda: mk.testing.check(Shift(), algorithm(), LINES), TypeError, "algorithm must hold", id="swapped"),
    pytest.param(lambda: mk.testing.check(algorithm(), mk.maml, LINES), TypeError, "an algorithm", id="module"),
    pytest.param(lambda: mk.testing.check(algorithm(), Shift, LINES), TypeError, r"Call it first: Shift\(", id="class"),
    pytest.param(lambda: mk.testing.check(algorithm(), Shift(), 3), TypeError, "sampler must be a function", id="3"),
    pytest.param(
        lambda: mk.testing.check(algorithm(), Shift(), mk.tasks.Sinusoid), TypeError, "Call it first", id="kind",
    ),
    pytest.param(
        lambda: mk.testing.check(algorithm(), Shift(), lambda: 0), ValueError, r"sampler\(key\) raised", id="no key",
    ),
    pytest.param(
        lambda: mk.testing.check(algorithm(), Shift(), LINES, skip=["is_pur"]), ValueError, "is_pure", id="unknown",
    ),
    pytest.param(
        lambda: mk.testing.check(algorithm(), Shift(), LINES, num_tasks=1), ValueError, "num_tasks", id="one task",
    ),
    pytest.param(
        lambda: mk.testing.check(algorithm(), Shift(), LINES, training_steps=0), ValueError, "at least", id="no steps",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "words"), WRONG)
def test_wrong_arguments_are_named(call, kind, words):
    """Catches an error from JAX's insides where the arguments are mixed up."""
    with pytest.raises(kind, match=words) as caught:
        call()
    assert len(str(caught.value)) < 700


def test_a_module_of_ones_own_is_an_algorithm():
    """Catches a check that reads classes where an algorithm may be a module."""
    module = types.ModuleType("my_learner")
    module.adapt, module.predict, module.meta_loss = adapt, predict, meta_loss
    report = mk.testing.check(module, Shift(), LINES, skip=mk.testing.check_names()[1:])
    assert report.name == "my_learner"
    assert report.ok
