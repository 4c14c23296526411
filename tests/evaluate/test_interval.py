"""Intervals against golden numbers, coverage, and tasks that diverged."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from metakit.evaluate import Interval, bootstrap, paired_difference, student_t

SCORES = [0.2, 0.4, 0.6, 0.8]


def test_golden_numbers():
    """Catches n for n - 1, a normal for the t quantile, or a one-sided one; t_3(0.975) is from tables."""
    interval = student_t(SCORES)
    std = math.sqrt(0.2 / 3)  # squares of deviations: 0.09 + 0.01 + 0.01 + 0.09
    assert interval.mean == pytest.approx(0.5, rel=1e-14)
    assert interval.median == pytest.approx(0.5, rel=1e-14)
    assert interval.std == pytest.approx(std, rel=1e-14)
    assert interval.high - interval.mean == pytest.approx(3.182446305284263 * std / 2, rel=1e-12)
    assert interval.mean - interval.low == pytest.approx(3.182446305284263 * std / 2, rel=1e-12)
    assert (interval.num_tasks, interval.num_nonfinite, interval.level) == (4, 0, 0.95)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_other_levels_agree_with_scipy(level):
    """Catches a level that is fixed at 95 %."""
    scores = np.random.default_rng(0).gamma(2.0, size=37)
    low, high = scipy.stats.t.interval(level, 36, np.mean(scores), scipy.stats.sem(scores))
    interval = student_t(scores, level=level)
    np.testing.assert_allclose([interval.low, interval.high], [low, high], rtol=1e-12)


def test_float32_scores_are_summed_in_float64():
    """Catches the mean of 10,000 accuracies that is off in the fifth digit."""
    scores = np.full(10_000, 0.1, np.float32)
    assert student_t(scores).mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert student_t(scores).std < 1e-9


def coverage(make, draws=400, num_tasks=40):
    """How often an interval for the mean of exponential scores (true mean 1, skewed) holds it."""
    generator = np.random.default_rng(1)
    intervals = [make(generator.exponential(size=num_tasks), i) for i in range(draws)]
    return float(np.mean([i.low <= 1.0 <= i.high for i in intervals]))


@pytest.mark.parametrize(
    "make",
    [
        lambda scores, i: student_t(scores),
        lambda scores, i: bootstrap(scores, jax.random.key(i), num_resamples=500),
    ],
    ids=["student_t", "bootstrap"],
)
def test_intervals_cover_the_truth_as_often_as_they_say(make):
    """Catches an interval of the scores instead of their mean (covers always), or one sqrt(n) too narrow.

    Both are a little narrow for 40 skewed scores: 0.90 to 0.95 is known; 400 draws give an error of 0.013.
    """
    assert 0.87 < coverage(make) < 0.98


def test_the_bootstrap_agrees_with_t_where_both_hold():
    """Catches quantiles at the wrong levels: for 500 normal scores the two differ by sampling noise only."""
    scores = np.random.default_rng(2).normal(100.0, 1.0, 500)
    a, b = student_t(scores), bootstrap(scores, jax.random.key(0), num_resamples=4000)
    # The ends of the bootstrap have a standard error of about 2.7 / sqrt(4000) std errors = 4 %; allow four.
    tolerance = 0.17 * scores.std() / math.sqrt(500)
    assert abs(a.low - b.low) < tolerance
    assert abs(a.high - b.high) < tolerance
    assert (a.mean, a.std, a.median) == (b.mean, b.std, b.median)


def test_the_bootstrap_keeps_a_large_mean_in_float32():
    """Catches resampled means that lose the spread beside a large mean in 32 bits."""
    scores = 1e6 + np.random.default_rng(3).normal(0.0, 1e-2, 200)
    with jax.enable_x64(False):
        interval = bootstrap(scores, jax.random.key(0))
    reference = student_t(scores)
    assert (interval.high - interval.low) == pytest.approx(reference.high - reference.low, rel=0.15)


def test_the_bootstrap_stays_inside_the_range_of_the_scores():
    """Catches an accuracy above 1."""
    interval = bootstrap([1.0, 1.0, 1.0, 0.9], jax.random.key(0))
    assert interval.high == 1.0
    constant = bootstrap([0.5] * 5, jax.random.key(0))
    assert (constant.low, constant.high) == (0.5, 0.5)


def test_the_bootstrap_depends_on_the_key_alone():
    """Catches hidden random state."""
    scores = np.random.default_rng(5).normal(size=20)
    assert bootstrap(scores, jax.random.key(1)) == bootstrap(scores, jax.random.key(1))
    assert bootstrap(scores, jax.random.key(1)) != bootstrap(scores, jax.random.key(2))


def test_pairing_narrows_the_interval_on_correlated_scores():
    """Catches a difference of means that forgets the pairing: task difficulty is shared and drops out."""
    generator = np.random.default_rng(4)
    difficulty = generator.normal(0.5, 0.2, 300)
    first = difficulty + generator.normal(0.02, 0.02, 300)
    second = difficulty + generator.normal(0.0, 0.02, 300)
    paired = paired_difference(first, second)
    separate = student_t(first), student_t(second)
    assert separate[1].high > separate[0].low  # these overlap
    assert paired.low > 0.0  # and yet the first is clearly better
    assert paired.high - paired.low < 0.3 * (separate[0].high - separate[0].low)
    reference = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose([paired.low, paired.high], reference, rtol=1e-10)


@pytest.mark.parametrize("make", [student_t, lambda scores, **kw: bootstrap(scores, jax.random.key(0), **kw)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_diverged_tasks_are_counted_and_never_dropped_unasked(make, bad):
    """Catches a mean over the tasks that happened to work."""
    interval = make([*SCORES, bad])
    assert (interval.num_tasks, interval.num_nonfinite) == (5, 1)
    assert all(math.isnan(x) for x in (interval.mean, interval.std, interval.low, interval.high, interval.median))
    assert "1 not finite" in str(interval)
    rest = make([*SCORES, bad], nonfinite="exclude")
    assert rest._replace(num_tasks=4, num_nonfinite=0, method="") == make(SCORES)._replace(method="")
    assert (rest.num_tasks, rest.num_nonfinite) == (5, 1)
    assert "of the finite" in str(rest)


def test_a_pair_counts_once_where_either_diverged():
    """Catches inf - inf passing as a number, or two counts for one task."""
    interval = paired_difference([1.0, math.inf, 2.0, math.nan], [0.5, math.inf, 1.0, 0.0])
    assert interval.num_nonfinite == 2


def test_printing():
    """Catches an interval printed without its level, method or number of tasks."""
    text = str(student_t(SCORES, level=0.9))
    assert text == "0.5 [0.1962, 0.8038] (90 %, Student t, 4 tasks)"
    assert isinstance(student_t(SCORES), Interval)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_t([0.5]), "at least 2 scores, got 1"),
        (lambda: student_t([0.5, math.nan], nonfinite="exclude"), "at least 2 finite scores, got 1 of 2"),
        (lambda: student_t([[0.5, 0.4]]), r"one number per task, \[tasks\], got shape \[1, 2\]"),
        (lambda: student_t(SCORES, level=95.0), "between 0 and 1, such as 0.95"),
        (
            lambda: bootstrap(SCORES, jax.random.key(0), num_resamples=10),
            "num_resamples must be at least 100",
        ),
        (lambda: bootstrap([], jax.random.key(0)), "at least 2"),
        (lambda: paired_difference([0.1, 0.2], [0.1, 0.2, 0.3]), "same tasks, got shapes"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    """Catches an interval of nothing."""
    with pytest.raises(ValueError, match=message):
        call()
