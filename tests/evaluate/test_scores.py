"""Per-task scores, comparisons and calibration."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk
from metakit.evaluate import calibration, compare, reliability, scores, scores_of

KEY = jax.random.key(11)
METRICS = {"accuracy": mk.metrics.accuracy, "nll": mk.metrics.negative_log_likelihood}


class Centroids(eqx.Module):
    scale: mk.Hyperparameter


def _adapt(learner, support, key=None):
    member = jax.nn.one_hot(support.y, support.way, dtype=support.x.dtype)
    return learner.scale.value, member.T @ support.x / member.sum(0)[:, None]


def _predict(adapted, x, key=None):
    scale, centres = adapted
    return -scale * jnp.sum((x[:, None] - centres[None]) ** 2, axis=-1)


CENTROIDS = mk.MetaLearner(_adapt, _predict, lambda learner, task, key=None: jnp.zeros(()))


def draw(key):
    """Three classes of points in the plane, close enough to be confused."""
    centre_key, noise_key = jax.random.split(key)
    centres = jax.random.normal(centre_key, (3, 2))
    y = jnp.tile(jnp.arange(3), 5)
    x = centres[y] + 0.5 * jax.random.normal(noise_key, (15, 2))
    return mk.Episode(mk.Examples(x[:6], y[:6], way=3), mk.Examples(x[6:], y[6:], way=3))


def evaluate(num_tasks=7, scale=1.0, **options):
    return scores(CENTROIDS, Centroids(mk.fixed(scale)), draw, KEY, num_tasks=num_tasks, metrics=METRICS, **options)


def test_scores_are_those_of_a_loop_over_tasks():
    """Catches predictions scored on the support set, or tasks and scores out of step."""
    found = evaluate()
    for i in range(7):
        draw_key, _ = jax.random.split(jax.random.fold_in(KEY, i))
        task = draw(draw_key)
        logits = _predict(_adapt(Centroids(mk.fixed(1.0)), task.support), task.query.x)
        for name, metric in METRICS.items():
            np.testing.assert_allclose(found[name][i], metric(logits, task.query.y), rtol=1e-10)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 3}, {"chunk": None}, {"mesh": 2}, {"mesh": 2, "chunk": 2}])
def test_chunks_and_devices_change_nothing(options):
    """Catches keys taken from the chunk or device; seven tasks divide by neither."""
    if "mesh" in options:
        options = options | {"mesh": mk.sharding.task_mesh(options["mesh"])}
    found, expected = evaluate(**options), evaluate()
    for name in METRICS:
        assert found[name].shape == (7,)
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_more_tasks_begin_with_the_same_ones():
    """Catches tasks that depend on how many there are, which would unpair comparisons."""
    np.testing.assert_allclose(evaluate(12)["nll"][:7], evaluate(7)["nll"], rtol=1e-12)


def test_another_learner_does_not_compile_again():
    """Catches a learner closed over by the compiled function."""
    traces = 0

    def counted(outputs, targets):
        nonlocal traces
        traces += 1
        return mk.metrics.accuracy(outputs, targets)

    for scale in (1.0, 2.0, 3.0):
        learner = Centroids(mk.fixed(scale))
        scores(CENTROIDS, learner, draw, KEY, num_tasks=4, metrics={"accuracy": counted}, chunk=2)
    assert traces == 1


def test_scores_of_returns_any_tree():
    """Catches scores limited to one number: several step counts of one adaptation are one call."""
    found = scores_of(lambda task, key: {"x": task, "several": jnp.stack([task, 2 * task])}, jax.random.normal, KEY, num_tasks=5)  # fmt: skip  # noqa: E501
    assert found["several"].shape == (5, 2)
    np.testing.assert_array_equal(found["several"][:, 1], 2 * found["x"])


def test_drawing_and_adapting_use_different_keys():
    """Catches one key for the task and for the learner's own randomness."""
    drawn, used = scores_of(lambda task, key: (task, jax.random.normal(key)), jax.random.normal, KEY, num_tasks=50)
    assert len(np.unique(np.concatenate([drawn, used]))) == 100


def test_a_diverged_task_stays_in_the_scores():
    """Catches NaN that is dropped on the way."""
    found = scores_of(lambda task, key: jnp.log(task), jax.random.normal, KEY, num_tasks=50)
    interval = mk.evaluate.student_t(found)
    assert 0 < interval.num_nonfinite < 50
    assert interval.num_nonfinite == np.isnan(found).sum()


def test_comparison_is_paired():
    """Catches contenders judged on different tasks: the same learner must differ by exactly 0."""
    one, other = Centroids(mk.fixed(1.0)), Centroids(mk.fixed(0.01))
    result = compare(
        {"one": (CENTROIDS, one), "again": (CENTROIDS, one), "blurred": (CENTROIDS, other)},
        draw, KEY, num_tasks=60, metric=mk.metrics.negative_log_likelihood,
    )  # fmt: skip
    assert list(result.differences) == ["again", "blurred"]
    assert (result.differences["again"].low, result.differences["again"].high) == (0.0, 0.0)
    assert result.differences["blurred"].high < 0  # the first has the lower loss
    assert result.intervals["one"].mean == np.mean(result.scores["one"])


def test_pooled_calibration_is_that_of_all_predictions_together():
    """Catches a mean over tasks of per-task errors, which noise inflates."""
    learner = Centroids(mk.fixed(1.0))
    found = calibration(CENTROIDS, learner, draw, KEY, num_tasks=40, num_bins=10)

    def logits_and_targets(task, key):
        return _predict(_adapt(learner, task.support), task.query.x), task.query.y

    logits, targets = scores_of(logits_and_targets, draw, KEY, num_tasks=40)
    pooled = mk.metrics.expected_calibration_error(logits.reshape(-1, 3), targets.reshape(-1), num_bins=10)
    per_task = jax.vmap(lambda x, y: mk.metrics.expected_calibration_error(x, y, num_bins=10))(logits, targets)
    assert found.error == pytest.approx(float(pooled), rel=1e-9)
    assert found.error < 0.7 * float(per_task.mean())
    assert found.count.sum() == 40 * 9
    assert found.edges.shape == (11,)


def test_reliability_by_hand():
    """Catches bins closed on the wrong side, or an unweighted mean over bins."""
    # 0.5 belongs to (0, 0.5], 1.0 to (0.5, 1].
    found = reliability([0.5, 0.25, 1.0, 0.75], [1, 0, 1, 1], num_bins=2)
    np.testing.assert_array_equal(found.count, [2, 2])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    np.testing.assert_allclose(found.confidence, [0.375, 0.875])
    assert found.error == pytest.approx((0.25 + 0.25) / 4)
    lost = reliability([0.5, np.nan], [1, 0], num_bins=2)
    assert np.isnan(lost.error)
    assert lost.num_nonfinite == 1


def test_the_learner_of_a_state_that_was_used_is_named():
    """Catches "Array has been deleted" where a training's old state is evaluated in place of the new one."""
    pull = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
    optimiser = optax.sgd(0.1)
    state = mk.train.init(jnp.zeros(()), optimiser, key=KEY)
    mk.train.run_steps(pull, optimiser, state, jax.random.normal, num_steps=1, meta_batch=1)
    with pytest.raises(ValueError, match=r"the learner was given away.* Use the learner of the state"):
        scores_of(eqx.Partial(jnp.add, state.learner), jax.random.normal, KEY, num_tasks=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: evaluate(0), ValueError, "num_tasks must be at least 1"),
        (lambda: evaluate(chunk=0), ValueError, "chunk"),
        (lambda: scores(CENTROIDS, None, draw, KEY, num_tasks=2, metrics={}), ValueError, "metrics is empty"),
        (
            lambda: scores(Centroids(mk.fixed(1.0)), CENTROIDS, draw, KEY, num_tasks=2, metrics=METRICS),
            TypeError,
            "algorithm must hold",
        ),
        (
            lambda: scores(CENTROIDS, None, mk.tasks.Navigations(), KEY, num_tasks=2, metrics=METRICS),
            TypeError,
            r"scores needs episodes.* the sampler gave a .*scores_of\(eqx\.Partial",
        ),
        (
            lambda: scores_of(len, mk.tasks.Sinusoid, KEY, num_tasks=2),
            TypeError,
            "got the class Sinusoid. Call it first",
        ),
        (lambda: calibration(3, None, draw, KEY, num_tasks=2), TypeError, "algorithm must hold"),
        (lambda: compare({}, draw, KEY, num_tasks=2, metric=len), ValueError, "at least two learners"),
        (lambda: reliability([0.5], [1, 0]), ValueError, "one shape"),
        (lambda: reliability([], []), ValueError, "at least one prediction"),
        (lambda: reliability([0.5], [1], num_bins=0), ValueError, "num_bins must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    """Catches an empty evaluation, and arguments in the wrong order."""
    with pytest.raises(error, match=message):
        call()
