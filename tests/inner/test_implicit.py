"""Implicit differentiation: closed forms, solvers, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import metakit as mk

KEYS = jax.random.split(jax.random.key(0), 6)
SUPPORT = (jax.random.normal(KEYS[0], (12, 4)), jax.random.normal(KEYS[1], (12,)))
QUERY = (jax.random.normal(KEYS[2], (9, 4)), jax.random.normal(KEYS[3], (9,)))
THETA = jax.random.normal(KEYS[4], (4,))


def fit(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def proximal(w, args, step):
    """Identity T20's inner problem."""
    del step
    return fit(w, *args["support"]) + 0.5 * args["pull"] * jnp.sum((w - args["centre"]) ** 2)


def at_minimum(args, adjoint=None, num_steps=300, rate=0.2, start=None, objective=proximal):
    adjoint = adjoint or mk.inner.Implicit()
    start = jnp.zeros(4) if start is None else start
    return adjoint.solve(objective, mk.inner.SGD(rate), start, args, num_steps)


def prox_args(pull=0.7):
    return {"support": SUPPORT, "pull": jnp.asarray(pull), "centre": THETA}


def outer(args, adjoint=None, **options):
    return fit(at_minimum(args, adjoint, **options).params, *QUERY)


def moments(x, y):
    return x.T @ x / len(x), x.T @ y / len(x)


@pytest.mark.parametrize(
    ("adjoint", "tolerance"),
    [
        (mk.inner.Implicit(), 1e-9),
        (mk.inner.Implicit(lx.CG(rtol=1e-12, atol=1e-12, max_steps=4)), 1e-9),
        (mk.inner.Implicit(lx.GMRES(rtol=1e-10, atol=1e-10)), 1e-8),
        (mk.inner.Implicit(lx.BiCGStab(rtol=1e-10, atol=1e-10)), 1e-8),
        (mk.inner.Implicit(mk.inner.Neumann(300, 0.3)), 1e-9),
    ],
    ids=["default", "as_many_steps_as_dimensions", "gmres", "bicgstab", "neumann"],
)
def test_a_quadratic_in_closed_form(adjoint, tolerance):
    """Catches a wrong Hessian, sign or missing mixed derivative in any linear solver: T20, with conjugate gradients
    exact after as many steps as dimensions."""
    pull = 0.7
    (g_s, h_s), (g_q, h_q) = moments(*SUPPORT), moments(*QUERY)
    inverse = np.linalg.inv(g_s + pull * np.eye(4))
    minimum = inverse @ (h_s + pull * THETA)
    slope = g_q @ minimum - h_q

    gradient = jax.grad(outer)(prox_args(pull), adjoint)
    np.testing.assert_allclose(at_minimum(prox_args(pull), adjoint).params, minimum, atol=1e-12)
    np.testing.assert_allclose(gradient["centre"], pull * inverse @ slope, atol=tolerance)
    np.testing.assert_allclose(gradient["centre"], np.linalg.inv(np.eye(4) + g_s / pull) @ slope, atol=tolerance)
    np.testing.assert_allclose(gradient["pull"], slope @ inverse @ (THETA - minimum), atol=tolerance)


def test_ridge_regression_in_closed_form():
    """Catches errors that a well-conditioned problem hides: the gradient of a validation loss with respect to the log
    of the penalty, the inputs and the targets, through the normal equations' own derivative (issue 5: 1e-6)."""

    def inner(w, args, step):
        del step
        return jnp.sum((args["x"] @ w - args["y"]) ** 2) + jnp.exp(args["log_penalty"]) * jnp.sum(w**2)

    def exact(args):
        x = args["x"]
        w = jnp.linalg.solve(x.T @ x + jnp.exp(args["log_penalty"]) * jnp.eye(4), x.T @ args["y"])
        return fit(w, *QUERY)

    args = {"x": SUPPORT[0], "y": SUPPORT[1], "log_penalty": jnp.asarray(np.log(5.0))}
    actual = jax.grad(outer)(args, num_steps=400, rate=0.01, objective=inner)
    for name, expected in jax.grad(exact)(args).items():
        error = jnp.linalg.norm(jnp.ravel(actual[name] - expected)) / jnp.linalg.norm(jnp.ravel(expected))
        assert float(error) < 1e-9, name


@pytest.mark.slow
def test_the_unroll_tends_to_it_geometrically():
    """Catches an implicit gradient that is consistent in itself and belongs to another problem: T20's second half."""
    expected = jax.grad(outer)(prox_args())["centre"]

    def from_centre(args, steps):
        start = args["centre"]
        params = mk.inner.Unrolled().solve(proximal, mk.inner.SGD(0.2), start, args, steps).params
        return fit(params, *QUERY)

    errors = [float(jnp.linalg.norm(jax.grad(from_centre)(prox_args(), n)["centre"] - expected)) for n in (10, 50, 200)]
    assert errors[0] > 1e-5
    assert errors[1] < 1e-2 * errors[0]
    assert errors[2] < 1e-11


def test_a_strong_pull_is_no_adaptation():
    """Catches the wrong limit: for λ to infinity the meta-gradient is the query loss's own gradient at θ (T20)."""
    gradient = jax.grad(outer)(prox_args(1e6), num_steps=50, rate=1e-6)["centre"]
    np.testing.assert_allclose(gradient, jax.grad(fit)(THETA, *QUERY), rtol=1e-5)


def network(params, args, step):
    del step
    residual = jnp.tanh(args["x"] @ params["w1"]) @ params["w2"] - args["y"]
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean(args["weights"][:, None] * residual**2) + args["decay"] * squares


def network_args():
    keys = jax.random.split(jax.random.key(1), 5)
    params = {"w1": jax.random.normal(keys[0], (3, 4)), "w2": jax.random.normal(keys[1], (4, 2))}
    args = {
        "x": jax.random.normal(keys[2], (20, 3)),
        "y": jax.random.normal(keys[3], (20, 2)),
        "weights": jax.random.uniform(keys[4], (20,)),
        "decay": jnp.asarray(0.05),
        "labels": jnp.arange(20),
    }
    return params, args


@pytest.mark.slow
def test_a_converged_network_agrees_with_the_unroll():
    """Catches an implicit gradient that is right for quadratics only: every leaf within 1e-4 of the unroll."""
    params, args = network_args()

    def loss(args, adjoint):
        adapted = adjoint.solve(network, mk.inner.Momentum(0.2, 0.9), params, args, 2000).params
        return jnp.sum(jnp.sin(adapted["w1"])) + jnp.sum(adapted["w2"] ** 2)

    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    implicit, unrolled = gradient(args, mk.inner.Implicit()), gradient(args, mk.inner.MixedMode())
    for name in ("x", "y", "weights", "decay"):
        error = jnp.linalg.norm(jnp.ravel(implicit[name] - unrolled[name]))
        assert float(error / jnp.linalg.norm(jnp.ravel(unrolled[name]))) < 1e-6, name


def test_damping_is_added_to_the_hessian():
    """Catches damping that is ignored, or that scales the Hessian."""
    pull, damping = 0.7, 0.5
    (g_s, _), (g_q, h_q) = moments(*SUPPORT), moments(*QUERY)
    minimum = at_minimum(prox_args(pull)).params
    expected = pull * np.linalg.inv(g_s + (pull + damping) * np.eye(4)) @ (g_q @ minimum - h_q)
    gradient = jax.grad(outer)(prox_args(pull), mk.inner.Implicit(damping=damping))
    np.testing.assert_allclose(gradient["centre"], expected, atol=1e-9)


def test_a_neumann_series_is_the_unroll_at_the_minimum():
    """Catches a series with a term too many or too few: J terms are J + 1 steps of descent from the minimum."""
    args, rate, terms = prox_args(), 0.3, 4
    minimum = at_minimum(args, num_steps=500).params

    def unrolled(args):
        solution = mk.inner.Unrolled().solve(proximal, mk.inner.SGD(rate), minimum, args, terms + 1)
        return fit(solution.params, *QUERY)

    series = mk.inner.Implicit(mk.inner.Neumann(terms, rate))
    np.testing.assert_allclose(jax.grad(outer)(args, series)["centre"], jax.grad(unrolled)(args)["centre"], rtol=1e-8)


def test_a_neumann_series_that_diverges_is_refused():
    """Catches a rate beyond the series' radius, whose terms grow."""
    with pytest.raises(ValueError, match="linear solve with the Hessian failed"):
        jax.grad(outer)(prox_args(), mk.inner.Implicit(mk.inner.Neumann(50, 5.0)))


@pytest.mark.slow
def test_float32_and_vmap():
    """Catches a solve that promotes, one that cannot reach a float64 tolerance in float32, and one that does not
    batch."""
    args, query = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (prox_args(), QUERY))
    start = jnp.zeros(4, jnp.float32)

    def loss(args):
        return fit(at_minimum(args, start=start).params, *query)

    def gradient(pull):
        return jax.grad(loss)({**args, "pull": pull})["centre"]

    pulls = jnp.asarray([0.5, 0.7], jnp.float32)
    together = jax.jit(jax.vmap(gradient))(pulls)
    assert together.dtype == jnp.float32
    for i in range(2):
        np.testing.assert_allclose(together[i], gradient(pulls[i]), rtol=1e-4)
    np.testing.assert_allclose(together[1], jax.grad(outer)(prox_args())["centre"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_auxiliary_results_do_not_count_as_differentiated(scan):
    """Catches the refusal of path gradients where the losses are only returned, alone or from a scan over tasks."""

    def loss(args):
        def one(pull):
            solution = at_minimum({**args, "pull": pull})
            return fit(solution.params, *QUERY), solution.losses

        values, losses = jax.lax.map(one, jnp.asarray([0.5, 0.7])) if scan else one(args["pull"])
        return jnp.sum(values), losses

    gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(prox_args())
    assert losses.shape == ((2, 300) if scan else (300,))
    assert bool(jnp.all(jnp.isfinite(gradient["centre"])))


def test_the_residual_is_the_norm_of_the_gradient():
    """Catches a residual of another point or in another norm."""
    solution = at_minimum(prox_args(), num_steps=7)
    expected = jnp.linalg.norm(jax.grad(proximal)(solution.params, prox_args(), 6))
    np.testing.assert_allclose(solution.residual, expected, rtol=1e-12)


def test_a_loop_that_has_not_converged_says_how_far_it_is():
    """Catches a biased gradient without a word: the error holds the residual, a compiled gradient is NaN, the value
    alone needs no convergence, and tolerance=None accepts the bias."""
    residual = float(at_minimum(prox_args(), num_steps=7).residual)
    assert residual > 1e-3
    with pytest.raises(ValueError, match=rf"not converged after 7 steps.*norm {residual:.3g}.*tolerance=0\.001"):
        jax.grad(outer)(prox_args(), num_steps=7)
    compiled = jax.jit(jax.grad(lambda args: outer(args, num_steps=7)))(prox_args())
    assert bool(jnp.all(jnp.isnan(compiled["centre"])))
    accepting = mk.inner.Implicit(tolerance=None)
    assert bool(jnp.all(jnp.isfinite(jax.grad(outer)(prox_args(), accepting, num_steps=7)["centre"])))


def test_a_singular_hessian_is_refused_and_damping_helps():
    """Catches infinities from a flat direction: here the last parameter does not matter to the inner loss."""

    def flat(w, args, step):
        del step
        return 0.5 * jnp.sum((w[:3] - args) ** 2)

    def loss(args, adjoint):
        return jnp.sum(adjoint.solve(flat, mk.inner.SGD(0.5), jnp.ones(4), args, 60).params ** 2)

    with pytest.raises(ValueError, match=r"linear solve with the Hessian failed.*damping"):
        jax.grad(loss)(jnp.arange(3.0), mk.inner.Implicit())
    assert bool(jnp.all(jnp.isnan(jax.jit(jax.grad(lambda a: loss(a, mk.inner.Implicit())))(jnp.arange(3.0)))))
    np.testing.assert_allclose(
        jax.grad(loss)(jnp.arange(3.0), mk.inner.Implicit(damping=1e-6)), 2 * jnp.arange(3.0), atol=1e-4
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: jnp.sum(at_minimum(prox_args(), start=w).params), r"no gradient with respect to params"),
        (lambda w: jnp.sum(at_minimum(prox_args(), rate=w[0]).params), r"no gradient with respect to solver"),
        (lambda w: jnp.sum(at_minimum({**prox_args(), "centre": w}).losses), r"the minimum, not the path"),
        (lambda w: at_minimum({**prox_args(), "centre": w}).residual, r"the minimum, not the path"),
    ],
    ids=["params", "solver", "losses", "residual"],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "compiled"])
def test_what_has_no_gradient_is_refused(function, message, transform):
    """Catches zeros in silence for what the implicit gradient drops."""
    with pytest.raises(ValueError, match=message):
        jax.grad(transform(function))(0.2 * jnp.ones(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.inner.Implicit(damping=-1.0), r"damping must be at least 0, got -1"),
        (lambda: mk.inner.Implicit(tolerance=0.0), r"tolerance must be above 0, got 0.*None"),
        (lambda: mk.inner.Neumann(-1, 0.1), r"num_terms >= 0 .* num_terms=-1"),
        (lambda: mk.inner.Neumann(3, 0.0), r"rate above 0, .* rate=0"),
    ],
)
def test_bad_options(make, message):
    """Catches options that could only give a wrong or no answer."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_it_takes_the_path_of_a_plain_loop():
    """Catches an adjoint that changes the numbers of the forward pass."""
    params, args = network_args()
    plain, implicit = (
        adjoint.solve(
            network, mk.inner.Momentum(0.1, 0.9), params, args, 5, observe=lambda p, a, s: p["w2"] + a["decay"]
        )
        for adjoint in (mk.inner.Unrolled(), mk.inner.Implicit())
    )
    for name in ("params", "losses", "state", "observed"):
        for a, b in zip(*(jax.tree.leaves(getattr(s, name)) for s in (plain, implicit)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
