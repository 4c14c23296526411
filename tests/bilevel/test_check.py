"""The check must pass what is right, and name what is wrong."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bilevel_problems import DATA, KINDS, PARAMS, bilevel, fit, squares

import metakit as mk

PROBLEM = bilevel(
    lambda params, hyper, data, step: fit(params, data) + jnp.exp(hyper["log_decay"]) * squares(params),
    solver=lambda hyper: mk.inner.Momentum(hyper["rate"], hyper["decay"]),
)
HYPER = {"log_decay": jnp.asarray(-2.0), "rate": jnp.asarray(0.05), "decay": jnp.asarray(0.8)}


def errors(report):
    return {(row.leaf, row.against): row.error for row in report.rows}


def test_a_right_hypergradient_passes_everything():
    """Catches differences too coarse for 1e-6, comparisons that are left out, and one of an adjoint with itself."""
    report = mk.check_hypergradient(PROBLEM, HYPER, PARAMS, DATA)
    assert report.agrees, report
    assert report.adjoint == "MixedMode"
    assert {row.against for row in report.rows} == {"differences", "jvp", "Unrolled", "Checkpointed"}
    assert {row.leaf for row in report.rows} == {"['log_decay']", "['rate']", "['decay']"}
    assert max(row.error for row in report.rows if row.against == "differences") < 1e-8
    assert max(row.error for row in report.rows if row.against != "differences") < 1e-10
    assert str(report).startswith("the hypergradient of MixedMode agrees in all of 3 leaves (tolerance 1e-06)\n  leaf")


class Wrong(mk.inner.AbstractAdjoint):
    """Exact, but for the gradient of the solver's decay, which is 1 % off."""

    def dropped(self, num_steps):
        return frozenset()

    def solve(self, objective, solver, params, args, num_steps, *, observe=None):
        off = lambda decay: 1.01 * decay - jax.lax.stop_gradient(0.01 * decay)
        return mk.inner.MixedMode().solve(objective, solver.with_decays(off), params, args, num_steps, observe=observe)


def test_a_wrong_leaf_is_named_with_its_error():
    """Catches a check that averages over leaves, or that compares a wrong gradient with itself."""
    report = mk.check_hypergradient(PROBLEM, HYPER, PARAMS, DATA, adjoint=Wrong(), against=(mk.inner.Unrolled(),))
    assert not report.agrees
    assert report.worst.leaf == "['decay']"
    for against in ("differences", "jvp", "Unrolled"):
        np.testing.assert_allclose(errors(report)["['decay']", against], 0.01, rtol=0.02)
        assert errors(report)["['rate']", against] < 1e-6
    lines = str(report).splitlines()
    assert lines[0] == "the hypergradient of Wrong is wrong in 1 of 3 leaves (tolerance 1e-06)"
    assert [line.split()[0] for line in lines if "!" in line] == ["['decay']"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adjoint", "hyper"),
    [(mk.inner.Truncated(2), HYPER), (mk.inner.Implicit(tolerance=None), {"log_decay": HYPER["log_decay"]})],
)
def test_biased_adjoints_disagree(adjoint, hyper):
    """Catches a check that an approximation passes."""
    problem = PROBLEM if len(hyper) > 1 else bilevel(PROBLEM.inner)
    report = mk.check_hypergradient(problem, hyper, PARAMS, DATA, adjoint=adjoint, against=())
    assert not report.agrees
    assert 1e-3 < report.worst.error < 10


@pytest.mark.slow
@pytest.mark.optimised
def test_reversible_is_held_to_the_decays_that_it_takes():
    """Catches a check that calls Reversible wrong for rounding 0.8 to 52429/65536, or whose differences step over that
    staircase."""
    report = mk.check_hypergradient(PROBLEM, HYPER, PARAMS, DATA, adjoint=mk.inner.Reversible())
    assert report.agrees, report
    assert max(row.error for row in report.rows) < 1e-7


def test_nan_is_not_agreement():
    """Catches a comparison that NaN passes."""
    report = mk.HypergradientReport(
        "X", 1e-6, (mk.HypergradientRow("a", "jvp", float("nan"), 0.0), mk.HypergradientRow("b", "jvp", 1.0, 0))
    )
    assert not report.agrees
    assert report.worst.leaf == "a"
    assert "wrong in 2 of 2 leaves" in str(report)


@pytest.mark.slow
def test_a_leaf_without_influence_agrees_at_zero():
    """Catches relative errors of rounding: an unused leaf has gradient zero, and so have its differences."""
    report = mk.check_hypergradient(PROBLEM, {**HYPER, "unused": jnp.ones(3)}, PARAMS, DATA, against=())
    assert report.agrees, report
    assert errors(report)["['unused']", "differences"] < 1e-6


def test_a_float32_problem_is_checked_in_float64():
    """Catches a check in float32, in which no difference reaches 1e-6."""
    with jax.enable_x64(False):
        single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree)
        problem, hyper, params, data = map(single, (KINDS["weight_decay"][0], KINDS["weight_decay"][1], PARAMS, DATA))
        report = mk.check_hypergradient(problem, hyper, params, data, against=())
    assert report.agrees, report


def test_differences_that_cannot_resolve_the_tolerance_say_so():
    """Catches blame on an adjoint for what rounding does to the differences."""
    coarse = bilevel(outer=lambda params, hyper, data: hyper + 1e9 * squares(params))
    report = mk.check_hypergradient(coarse, jnp.asarray(0.5), PARAMS, DATA, against=(), tolerance=1e-12)
    row = next(row for row in report.rows if row.against == "differences")
    assert row.resolution > 1e-12
    assert "differences resolve" in str(report)


@pytest.mark.slow
def test_the_problem_stays_as_it_is():
    """Catches a check that leaves the caller's problem in float64."""
    problem = dataclasses.replace(PROBLEM, solver=mk.inner.SGD(mk.fixed(jnp.asarray(0.05, jnp.float32))))
    mk.check_hypergradient(problem, {"log_decay": HYPER["log_decay"]}, PARAMS, DATA, against=())
    assert problem.solver.rate.value.dtype == jnp.float32


def test_two_adjoints_of_one_kind_are_two_columns():
    """Catches comparisons that overwrite each other by the name of their class."""
    problem = mk.Bilevel(lambda w, h, data, step: (w - h) ** 2, lambda w, h, data: w**2, mk.inner.SGD(0.25), 3)
    against = (mk.inner.Truncated(1), mk.inner.Truncated(2), mk.inner.Unrolled())
    adjoint = mk.inner.Checkpointed()
    report = mk.check_hypergradient(problem, jnp.ones(()), jnp.zeros(()), adjoint=adjoint, against=against)
    found = {row.against: row.error for row in report.rows}
    assert list(found)[2:] == ["Truncated(last=1)", "Truncated(last=2)", "Unrolled"]
    # Of 1 - 0.5**3 the last step alone has 0.5, the last two 0.75.
    np.testing.assert_allclose([found[f"Truncated(last={h})"] for h in (1, 2)], [3 / 7, 1 / 7], rtol=1e-9)
