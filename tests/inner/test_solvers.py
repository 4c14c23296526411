"""Update rules: their paths, their rates, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk

PARAMS = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([[0.5]])}


def objective(params, args, step):
    del args, step
    return jnp.sum(params["a"] ** 2) + jnp.sum(params["a"]) * jnp.sum(params["b"]) + jnp.sum(params["b"] ** 4)


def path_of(solver, params=PARAMS, num_steps=4):
    return mk.inner.Unrolled().solve(objective, solver, params, None, num_steps).params


@pytest.mark.parametrize(
    ("solver", "optimiser"),
    [
        (mk.inner.SGD(0.1), optax.sgd(0.1)),
        (mk.inner.Momentum(0.1, 0.9), optax.sgd(0.1, momentum=0.9)),
        (mk.inner.Momentum(0.1, 0.9, nesterov=True), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        (mk.inner.Momentum(0.1, 0.0), optax.sgd(0.1)),
        (mk.inner.PerParameterSGD.like(PARAMS, 0.1), optax.sgd(0.1)),
        (mk.inner.PerLayerPerStepSGD.like(PARAMS, 0.1, num_steps=4), optax.sgd(0.1)),
        (
            mk.inner.Optax(optax.adam, learning_rate=0.1, b1=0.8, eps_root=1e-6),
            optax.adam(0.1, b1=0.8, eps_root=1e-6),
        ),
        (mk.inner.Optax(optax.sgd, learning_rate=0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (mk.inner.Optax(optax.rmsprop, learning_rate=0.1), optax.rmsprop(0.1)),
    ],
)
def test_the_path_is_optax(solver, optimiser):
    """Catches a wrong momentum convention, rates that are not applied, and hyperparameters that do not arrive."""
    params, state = PARAMS, optimiser.init(PARAMS)
    for _ in range(4):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(jax.grad(objective)(params, None, 0), state, params)
        params = optax.apply_updates(params, updates)
    for name, expected in params.items():
        np.testing.assert_allclose(path_of(solver)[name], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [
        mk.inner.SGD(0.1),
        mk.inner.Momentum(0.1, 0.9),
        mk.inner.PerParameterSGD.like(PARAMS, 0.1),
        mk.inner.PerLayerPerStepSGD.like(PARAMS, 0.1, num_steps=4),
        mk.inner.Optax(optax.adam, learning_rate=0.1),
    ],
)
def test_parameters_keep_their_dtype(solver):
    """Catches a float64 rate that promotes float32 parameters, which breaks the loop's carry or doubles its memory."""
    adapted = path_of(solver, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS), num_steps=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapted)} == {jnp.dtype(jnp.float32)}


def test_each_parameter_has_its_own_rate():
    """Catches rates that are mixed up between leaves: a rate of zero must hold its parameter still."""
    rates = {"a": jnp.asarray([0.0, 0.1]), "b": jnp.zeros((1, 1))}
    adapted = path_of(mk.inner.PerParameterSGD(rates))
    assert adapted["a"][0] == 1.0
    assert adapted["a"][1] != -2.0
    assert adapted["b"] == 0.5


def test_each_step_has_its_own_rate():
    """Catches the wrong step index: only the third step moves."""
    rates = {name: jnp.asarray([0.0, 0.0, 0.1]) for name in PARAMS}
    three, one = path_of(mk.inner.PerLayerPerStepSGD(rates), num_steps=3), path_of(mk.inner.SGD(0.1), num_steps=1)
    for name, expected in one.items():
        np.testing.assert_array_equal(three[name], expected)


def test_learned_rates_are_trainable_and_plain_ones_are_not():
    """Catches Meta-SGD whose rates the trainer leaves alone, and a fixed rate that drifts."""
    trainable = lambda solver: set(jax.tree.leaves(mk.trainable(solver)))
    assert trainable(mk.inner.PerParameterSGD.like(PARAMS, 0.1)) == {True}
    assert trainable(mk.inner.PerLayerPerStepSGD.like(PARAMS, 0.1, 3)) == {True}
    assert trainable(mk.inner.SGD(0.1)) == {False}
    assert trainable(mk.inner.SGD(mk.learned(0.1))) == {True}
    adam = mk.inner.Optax(optax.adam, learning_rate=mk.learned(0.1), b1=0.9)
    assert {name: h.learned for name, h in adam.hyperparameters.items()} == {
        "learning_rate": True,
        "b1": False,
        "eps_root": False,
    }


def test_rates_for_the_whole_model_serve_a_part_of_it():
    """Catches rates matched by position instead of by path, which ANIL with Meta-SGD would scramble."""
    solver = mk.inner.PerParameterSGD({"a": jnp.full(2, 9.0), "b": jnp.full((1, 1), 0.1)})
    adapted = (
        mk.inner.Unrolled()
        .solve(lambda p, a, s: jnp.sum(p["b"] ** 2), solver, {"a": None, "b": PARAMS["b"]}, None, 1)
        .params
    )
    np.testing.assert_allclose(adapted["b"], [[0.4]])


def test_adam_has_a_finite_meta_gradient_where_a_gradient_is_zero():
    """Catches optax's default eps_root of 0, with which a dead unit makes the whole meta-gradient NaN."""

    def outer(params, solver):
        solution = mk.inner.Unrolled().solve(lambda p, a, s: jnp.sum(p["a"] ** 2), solver, params, None, 2)
        return jnp.sum(solution.params["a"])

    # Zero by value at the second number, not by structure: a constant zero would send no gradient back.
    params = {"a": jnp.asarray([1.0, 0.0])}
    guarded = jax.grad(outer)(params, mk.inner.Optax(optax.adam, learning_rate=0.1))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(guarded))
    # The control: a factory that hides its eps_root keeps optax's default.
    hidden = mk.inner.Optax(lambda learning_rate: optax.adam(learning_rate), learning_rate=0.1)
    assert not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(jax.grad(outer)(params, hidden)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: mk.inner.SGD(jnp.ones(3)),
            ValueError,
            r"SGD's rate must be one number, got .* \[3\].*PerParameterSGD",
        ),
        (lambda: mk.inner.Momentum(0.1, jnp.ones(2)), ValueError, r"Momentum's decay must be one number"),
        (
            lambda: mk.inner.Optax(optax.adam(0.1)),
            TypeError,
            r"factory must be a function .* not mk.inner.Optax\(optax",
        ),
        (lambda: mk.inner.Optax(optax.adam, learning_rate=0.1, b3=0.1), TypeError, r"adam cannot be called .*'b3'"),
        (lambda: mk.inner.Optax(optax.adam, learning_rate=0.1, eps_root=0.0), ValueError, r"eps_root=0 in adam .* NaN"),
        (lambda: mk.inner.PerLayerPerStepSGD.like(PARAMS, 0.1, 0), ValueError, r"num_steps must be at least 1, got 0"),
        (lambda: mk.inner.PerLayerPerStepSGD({"a": 0.1}), ValueError, r"one shape \[num_steps\], got shapes \[\[\]\]"),
        (
            lambda: mk.inner.PerLayerPerStepSGD({"a": jnp.ones(2), "b": jnp.ones(3)}),
            ValueError,
            r"one shape .*\[\[2\], \[3\]\]",
        ),
        (lambda: mk.inner.PerParameterSGD.like(jnp.arange(3), 0.1), ValueError, r"no floating-point array"),
        (
            lambda: path_of(mk.inner.PerParameterSGD({"a": jnp.ones(2)})),
            ValueError,
            r"no rate for the parameter \['b'\]",
        ),
        (
            lambda: path_of(mk.inner.PerParameterSGD({"a": jnp.ones(3), "b": jnp.ones((1, 1))})),
            ValueError,
            r"rates for \['a'\] have shape \[3\], but the parameter has \[2\]",
        ),
    ],
)
def test_bad_input(make, error, message):
    """Catches mistakes that would otherwise surface as a JAX error far from their cause, or not at all."""
    with pytest.raises(error, match=message):
        make()


def test_optax_hyperparameters_have_gradients_and_do_not_retrace():
    """Catches an optimiser made once at construction, whose numbers are constants of the program."""
    traces = []

    @eqx.filter_jit
    def gradient(solver):
        traces.append(1)
        return eqx.filter_grad(lambda s: jnp.sum(path_of(s)["a"]))(solver)

    for rate in (0.1, 0.2, 0.3):
        # Adam's bias correction decay**count has a derivative that JAX itself cannot take under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            result = gradient(mk.inner.Optax(optax.adam, learning_rate=rate, b2=0.9))
    assert len(traces) == 1
    assert all(float(result.hyperparameters[name].value) != 0 for name in ("learning_rate", "b2", "eps_root"))


@pytest.mark.parametrize("averaged", [False, True])
def test_momentum_per_step_follows_its_equation(averaged):
    """Catches rates or decays of the wrong step or leaf, and the gain of the averaged velocity."""
    rates = {"a": jnp.asarray([0.1, 0.2, 0.05]), "b": jnp.asarray([0.3, 0.01, 0.1])}
    decays = {"a": jnp.asarray([0.9, 0.5, 0.7]), "b": jnp.asarray([0.2, 0.8, 0.6])}
    params, velocity = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    for t in range(3):
        grads = jax.grad(objective)(params, None, t)
        for name in params:
            gain = 1 - decays[name][t] if averaged else 1.0
            velocity = {**velocity, name: decays[name][t] * velocity[name] + gain * grads[name]}
        params = {name: params[name] - rates[name][t] * velocity[name] for name in params}
    adapted = path_of(mk.inner.PerLayerPerStepMomentum(rates, decays, averaged), num_steps=3)
    for name, expected in params.items():
        np.testing.assert_allclose(adapted[name], expected, rtol=1e-12)


def test_constant_momentum_per_step_is_momentum():
    """Catches another convention of the velocity than Momentum's."""
    per_step = mk.inner.PerLayerPerStepMomentum.like(PARAMS, 0.1, 0.9, num_steps=4)
    for name, expected in path_of(mk.inner.Momentum(0.1, 0.9)).items():
        np.testing.assert_allclose(path_of(per_step)[name], expected, rtol=1e-12)
    assert set(jax.tree.leaves(mk.trainable(per_step))) == {True}


def test_meta_curvature_starts_as_descent_and_multiplies_along_each_axis():
    """Catches a transposed matrix or the wrong axis: of a matrix of gradients it is M1 g M2ᵀ."""
    like = mk.inner.MetaCurvature.like(PARAMS, 0.1)
    for name, expected in path_of(mk.inner.SGD(0.1)).items():
        np.testing.assert_allclose(path_of(like)[name], expected, rtol=1e-12)
    keys = jax.random.split(jax.random.key(0), 4)
    left, right = jax.random.normal(keys[0], (3, 3)), jax.random.normal(keys[1], (2, 2))
    weight, slope = {"w": jax.random.normal(keys[2], (3, 2))}, {"w": jax.random.normal(keys[3], (3, 2))}
    solver = mk.inner.MetaCurvature(0.5, {"['w']": (left, right)})
    moved, _ = solver.update(slope, None, weight, jnp.zeros((), int))
    np.testing.assert_allclose(moved["w"], weight["w"] - 0.5 * left @ slope["w"] @ right.T, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mk.inner.PerLayerPerStepMomentum({"a": jnp.ones(2)}, {"a": jnp.ones(3)}),
            r"rates and decays must all be arrays of one shape \[num_steps\], got shapes \[\[2\], \[3\]\]",
        ),
        (lambda: mk.inner.PerLayerPerStepMomentum.like(PARAMS, 0.1, 0.9, 0), r"num_steps must be at least 1, got 0"),
        (
            lambda: path_of(mk.inner.PerLayerPerStepMomentum.like({"a": PARAMS["a"]}, 0.1, 0.9, 4)),
            r"PerLayerPerStepMomentum holds no rate for the parameter \['b'\]",
        ),
        (
            lambda: path_of(mk.inner.PerLayerPerStepMomentum.like(PARAMS, 0.1, 0.9, 2)),
            r"num_steps=4 was asked, .* rates for 2 steps",
        ),
        (lambda: path_of(mk.inner.MetaCurvature(0.1, {})), r"square matrix for each axis .* \['a'\] .*\[2\], got none"),
        (
            lambda: path_of(mk.inner.MetaCurvature(0.1, {"['a']": (jnp.eye(3),)})),
            r"parameter \['a'\] of shape \[2\], got \[\(3, 3\)\]",
        ),
        (lambda: mk.inner.MetaCurvature.like(jnp.arange(3), 0.1), r"no floating-point array to precondition"),
    ],
)
def test_bad_input_of_the_solvers_with_many_numbers(make, message):
    """Catches rates that are clamped, missing or of another model."""
    with pytest.raises(ValueError, match=message):
        make()
