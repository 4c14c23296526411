"""One call for every kind of hyperparameter, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bilevel_problems import ARRAYS, DATA, KINDS, PARAMS, bilevel, fit, plain, squares, start, validation

import metakit as mk

decay = KINDS["weight_decay"]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in {"rates_and_momenta", "weights_of_examples"} else pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_every_kind_of_hyperparameter_has_the_right_gradient(kind):
    """Catches a kind of hyperparameter that does not reach the outer loss through the call: every leaf against central
    differences and forward mode, to 1e-6, and none of them zero."""
    problem, hyper, given = KINDS[kind]
    report = mk.check_hypergradient(problem, hyper, start(given), DATA, against=())
    assert report.agrees, report
    assert {row.against for row in report.rows} == {"differences", "jvp"}
    value, gradient, solution = mk.hypergradient(problem, hyper, start(given), DATA)
    assert jax.tree.structure(gradient) == jax.tree.structure(eqx.filter(hyper, eqx.is_inexact_array))
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(value, validation(solution.params, hyper, DATA), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("adjoint", [mk.inner.Reversible(), mk.inner.Forward(), mk.inner.MixedMode(checkpointed=True)])
@pytest.mark.parametrize("kind", ["rates_and_momenta", "weights_of_examples", "initialisation"])
def test_every_exact_adjoint_serves(kind, adjoint):
    """Catches an adjoint that handles parameters, data or solver alone."""
    problem, hyper, given = KINDS[kind]
    report = mk.check_hypergradient(problem, hyper, start(given), DATA, adjoint=adjoint)
    assert report.agrees, report
    assert max(row.error for row in report.rows if row.against not in ("differences",)) < 1e-9


@pytest.mark.slow
def test_adam_and_a_function_that_makes_the_solver():
    """Catches solver hyperparameters that are baked in: Adam's rate as a hyperparameter, by an optax factory."""
    problem = bilevel(solver=lambda hyper: mk.inner.Optax(optax.adam, learning_rate=hyper["rate"], eps_root=1e-4))
    report = mk.check_hypergradient(problem, {"rate": jnp.asarray(0.05)}, PARAMS, DATA, against=(mk.inner.MixedMode(),))
    assert report.agrees, report


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"t": jnp.ones(()), "k": 0.5}, r"hyper\['k'\] is the Python float 0.5"),
        ({"n": jnp.arange(2)}, r"no floating-point array.*it holds ArrayImpl"),
    ],
)
def test_hyperparameters_that_would_get_no_gradient_are_refused(hyper, message):
    """Catches a gradient of None, which an optimiser takes for a number that need not move."""
    with pytest.raises(ValueError, match=message):
        mk.hypergradient(decay[0], hyper, PARAMS, DATA)
    with pytest.raises(ValueError, match=message):
        mk.start_real_time(decay[0], hyper, PARAMS)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.asarray])
@pytest.mark.parametrize("adjoint", [mk.inner.Unrolled(), mk.inner.MixedMode(), mk.inner.Forward()], ids=repr)
def test_numbers_of_numpy_are_hyperparameters_and_integers_may_stand_among_the_data(kind, adjoint):
    """Catches NumPy's float64, a subclass of Python's float, refused as one, and labels that stop a custom rule."""
    problem = mk.Bilevel(
        lambda w, h, data, step: h * jnp.sum(w[data["chosen"]] ** 2),
        lambda w, h, data: jnp.sum(w[data["numpy"]]),
        mk.inner.SGD(jnp.asarray(0.5, jnp.result_type(kind(0.1)))),
        2,
    )
    hyper = kind(0.1)
    weights = jnp.ones(2, jnp.result_type(hyper))
    data = {"chosen": jnp.asarray([0]), "numpy": np.asarray([0])}
    gradient = mk.hypergradient(problem, hyper, weights, data, adjoint=adjoint).gradient
    np.testing.assert_allclose(gradient, 2 * (1 - 0.1) * -1, rtol=1e-6)  # of (1 - h)^2


def test_auto_says_what_it_chose_and_is_what_was_announced(caplog):
    """Catches a choice that nobody can see, and an Auto with a limit that is decided by other facts than announced."""
    problem, hyper, given = decay
    tight = mk.choose_adjoint(problem, hyper, start(given), DATA, memory_limit=2000)
    with caplog.at_level("INFO", logger="metakit"):
        mk.hypergradient(problem, hyper, start(given), DATA, adjoint=mk.inner.Auto(2000))
    assert tight.reason in caplog.text
    with pytest.raises(TypeError, match=r"got the class MixedMode: MixedMode\(\.\.\.\)"):
        mk.hypergradient(problem, hyper, start(given), DATA, adjoint=mk.inner.MixedMode)
    with pytest.raises(TypeError, match=r"adjoint must be one of mk\.inner, .* or 'auto', got None"):
        mk.hypergradient(problem, hyper, start(given), DATA, adjoint=None)


def test_steps_are_checked_where_the_solver_is_yet_to_be_made():
    """Catches a negative count that only fails, or wraps around, in the middle of a training."""
    with pytest.raises(ValueError, match="num_steps must be at least 0"):
        mk.Bilevel(fit, validation, lambda hyper: mk.inner.SGD(0.1), -3)


def test_it_is_pure_and_composes_with_jit_and_vmap():
    """Catches state, a side effect, or a check that needs known numbers: jit equals eager, and vmap over problems (data
    and hyperparameters) equals a loop."""
    problem, hyper, _ = decay

    @eqx.filter_jit
    def compiled(hyper, data):
        return mk.hypergradient(problem, hyper, PARAMS, data)[:2]

    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf - 1.0]), hyper)
    scaled = {**DATA, "y": jnp.stack([DATA["y"], 2 * DATA["y"]])}
    axes = ({"log_decay": 0}, {name: 0 if name == "y" else None for name in DATA})
    together = eqx.filter_vmap(compiled, in_axes=axes)(many, scaled)
    for i in range(2):
        one = mk.hypergradient(problem, {"log_decay": many["log_decay"][i]}, PARAMS, {**DATA, "y": scaled["y"][i]})
        np.testing.assert_allclose(together[0][i], one.value, rtol=1e-12)
        np.testing.assert_allclose(together[1]["log_decay"][i], one.gradient["log_decay"], rtol=1e-10)


@pytest.mark.slow
def test_descending_it_lowers_the_validation_loss():
    """Catches a gradient of the wrong sign: weights of examples learned on data of which half is corrupted must lower
    the validation loss, and give the corrupted half less weight."""
    keys = jax.random.split(jax.random.key(3), 3)
    x, truth = jax.random.normal(keys[0], (40, 5)), jax.random.normal(keys[1], (5,))
    corrupted = jnp.arange(40) < 20
    y = jnp.where(corrupted, 4.0 * jax.random.normal(keys[2], (40,)), x @ truth)
    data = {"x": x, "y": y, "valid_x": x[20:] + 0.1, "valid_y": (x[20:] + 0.1) @ truth}
    problem = mk.Bilevel(
        lambda w, hyper, data, step: jnp.mean(jax.nn.sigmoid(hyper) * (data["x"] @ w - data["y"]) ** 2),
        lambda w, hyper, data: jnp.mean((data["valid_x"] @ w - data["valid_y"]) ** 2),
        mk.inner.SGD(0.2),
        50,
    )
    hyper, values = jnp.zeros(40), []
    step = eqx.filter_jit(lambda hyper: mk.hypergradient(problem, hyper, jnp.zeros(5), data)[:2])
    for _ in range(60):
        value, gradient = step(hyper)
        values.append(float(value))
        hyper = hyper - 5.0 * gradient / jnp.linalg.norm(gradient)
    assert values[-1] < 0.1 * values[0]
    assert float(jnp.mean(hyper[corrupted])) < float(jnp.mean(hyper[~corrupted])) - 1.0


# A decay and a rate in one array: one leaf, which acts in two ways.
ONE_ARRAY = (
    bilevel(
        lambda params, hyper, data, step: fit(params, data) + hyper[0] * squares(params),
        solver=lambda hyper: mk.inner.SGD(hyper[1]),
    ),
    jnp.asarray([0.1, 0.05]),
)


@pytest.mark.parametrize(
    ("problem", "hyper", "params", "adjoint", "message"),
    [
        (
            *KINDS["rates_and_momenta"][:2],
            PARAMS,
            mk.inner.Implicit(tolerance=None),
            r"\.rates.* acts through the solver",
        ),
        (
            *KINDS["initialisation"][:2],
            None,
            mk.inner.Implicit(tolerance=None),
            r"\['w1'\] acts through the initialisat",
        ),
        (*KINDS["initialisation"][:2], None, mk.inner.Truncated(2), r"Truncated gives no gradient after num_steps=8"),
        (
            *decay[:2],
            PARAMS,
            mk.inner.FirstOrder(),
            r"\['log_decay'\] acts through the inner loss, of which First",
        ),
        (
            *ONE_ARRAY,
            PARAMS,
            mk.inner.FirstOrder(),
            r"hyper acts through the inner loss, of which First",
        ),
        (
            bilevel(decay[0].inner, outer=lambda params, hyper, data: hyper["log_decay"] ** 2 + squares(params)),
            decay[1],
            PARAMS,
            mk.inner.FirstOrder(),
            r"\['log_decay'\] acts through the inner loss, of which First",
        ),
        (
            *ONE_ARRAY,
            PARAMS,
            mk.inner.Implicit(tolerance=None),
            r"hyper acts through the solver, of which Implicit",
        ),
    ],
    ids=[
        "implicit_rates",
        "implicit_init",
        "truncated_init",
        "first_order_decay",
        "first_order_decay_beside_a_rate",
        "first_order_decay_used_outside_as_well",
        "implicit_rate_beside_a_decay_unconverged",
    ],
)
def test_a_hyperparameter_that_the_adjoint_drops_is_refused(problem, hyper, params, adjoint, message):
    """Catches a hyperparameter that never moves, since its gradient is zero in silence."""
    with pytest.raises(ValueError, match=message):
        mk.hypergradient(problem, hyper, params, DATA, adjoint=adjoint)
    with pytest.raises(ValueError, match=message):
        eqx.filter_jit(lambda: mk.hypergradient(problem, hyper, params, DATA, adjoint=adjoint))()


@pytest.mark.slow
def test_a_minimum_does_not_know_its_start():
    """Catches a refusal of what is exact: an initialisation that is also the centre of a pull has its whole gradient
    from Implicit, since where a converged loop started has no influence."""
    pulled = mk.Bilevel(
        lambda params, hyper, data, step: fit(params, data) + squares(jax.tree.map(jnp.subtract, params, hyper)),
        validation,
        mk.inner.SGD(0.1),
        400,
        lambda hyper: hyper,
    )
    report = mk.check_hypergradient(pulled, ARRAYS, None, DATA, adjoint=mk.inner.Implicit(), against=())
    assert report.agrees, report


def test_a_loop_that_has_not_converged_is_refused():
    """Catches an implicit hypergradient of an unfinished loop; a compiled one is NaN and reports the residual."""
    problem, hyper, _ = decay
    with pytest.raises(ValueError, match=r"not converged after 8 steps: its gradient has norm \d"):
        mk.hypergradient(problem, hyper, PARAMS, DATA, adjoint=mk.inner.Implicit())
    result = eqx.filter_jit(lambda: mk.hypergradient(problem, hyper, PARAMS, DATA, adjoint=mk.inner.Implicit()))()
    assert bool(jnp.isnan(result.gradient["log_decay"]))
    assert float(result.solution.residual) > 1e-3
    assert bool(jnp.isfinite(result.value))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mk.hypergradient(decay[0], jnp.arange(3), PARAMS, DATA), ValueError, r"hyper holds no floating-point"),
        (lambda: mk.hypergradient(decay[0], decay[1], None, DATA), ValueError, r"no init, .* must be given"),
        (
            lambda: mk.hypergradient(KINDS["initialisation"][0], ARRAYS, PARAMS, DATA),
            ValueError,
            r"starts from the problem's init\(hyper\), but params was given as well",
        ),
        (
            lambda: mk.hypergradient(decay[0], decay[1], PARAMS, DATA, adjoint="atuo"),
            ValueError,
            r"adjoint='atuo' is not known. Did you mean 'auto'",
        ),
        (
            lambda: mk.hypergradient(bilevel(solver=lambda hyper: 0.1), decay[1], PARAMS, DATA),
            TypeError,
            r"solver\(hyper\) must return an update rule such as .*, got float",
        ),
        (lambda: mk.Bilevel(None, validation, mk.inner.SGD(0.1), 3), TypeError, r"inner must be a function, got NoneT"),
        (lambda: mk.Bilevel(plain, validation, 0.1, 3), TypeError, r"solver must be an update rule"),
        (lambda: mk.Bilevel(plain, validation, mk.inner.SGD(0.1), -1), ValueError, r"num_steps must be at least 0"),
        (lambda: mk.Bilevel(plain, validation, mk.inner.SGD(0.1), 3, PARAMS), TypeError, r"init must be a function"),
        (lambda: mk.hypergradient("x", decay[1], PARAMS, DATA), TypeError, r"problem must be an mk\.Bilevel.* got 'x'"),
        (lambda: mk.choose_adjoint(decay[0], 0.5, PARAMS, DATA), ValueError, r"Python float 0\.5"),
        (
            lambda: mk.choose_adjoint(*decay[:2], PARAMS, DATA, memory_limit=-1),
            ValueError,
            r"memory_limit must be a positive number of bytes, got -1",
        ),
        (
            lambda: mk.choose_adjoint(*decay[:2], PARAMS, DATA, memory_limit="1GB"),
            TypeError,
            r"memory_limit, in bytes, must be a whole number, got '1GB'",
        ),
        (
            lambda: mk.check_hypergradient(*decay[:2], PARAMS, DATA, against=mk.inner.Unrolled()),
            TypeError,
            r"against must be a sequence of adjoints",
        ),
        (
            lambda: mk.check_hypergradient(*decay[:2], PARAMS, DATA, tolerance=-1),
            ValueError,
            r"tolerance must be above 0, got -1",
        ),
        (
            lambda: mk.real_time_hypergradient(
                decay[0],
                {"log_decay": jnp.zeros(2)},
                mk.start_real_time(*decay[:2], PARAMS),
                DATA,
                num_steps=1,
            ),
            ValueError,
            r"hyper has 2 numbers, but the state carries derivatives by 1",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Catches mistakes that would surface far from their cause."""
    with pytest.raises(error, match=message):
        call()


def test_the_choice_is_for_the_loop_that_is_differentiated():
    """Catches a choice for another loop than the one that is differentiated, and forward mode chosen by the size of
    hyper where the solver made from it is larger."""
    problem, hyper, _ = decay
    choice = mk.choose_adjoint(problem, hyper, PARAMS, DATA)
    assert isinstance(choice.adjoint, mk.inner.MixedMode)
    assert choice.reason.startswith("8 steps of Momentum on 20 parameters: MixedMode, as it keeps the state")
    long = bilevel(decay[0].inner, solver=mk.inner.SGD(0.01), num_steps=10_000)
    assert isinstance(mk.choose_adjoint(long, hyper, PARAMS, DATA, memory_limit=10_000).adjoint, mk.inner.Forward)
    like = lambda hyper: mk.inner.PerLayerPerStepSGD.like(ARRAYS, hyper["log_decay"], num_steps=10_000)
    expanded = bilevel(decay[0].inner, solver=like, num_steps=10_000)
    choice = mk.choose_adjoint(expanded, hyper, PARAMS, DATA, memory_limit=10_000)
    assert not isinstance(choice.adjoint, mk.inner.Forward)
