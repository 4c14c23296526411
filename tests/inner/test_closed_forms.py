"""Meta-gradients against numbers and formulas worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inner_problems import EXACT, half_squared

import metakit as mk

exact = pytest.mark.parametrize("adjoint", EXACT.values(), ids=EXACT.keys())


@exact
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_second_order_step_of_three_numbers(adjoint, dtype):
    """Catches a missing or mis-scaled second derivative: torchmeta's test_update_parameters, exact even in float32."""

    def outer(w):
        solution = adjoint.solve(half_squared, mk.inner.SGD(0.5), w, jnp.asarray([1, 2, 3], dtype), 1)
        loss = half_squared(solution.params, jnp.asarray([4, 5, 6], dtype), 0)
        return loss, (solution.params, solution.losses)

    (loss, (adapted, losses)), gradient = jax.value_and_grad(outer, has_aux=True)(jnp.asarray([2, 3, 5], dtype))
    assert adapted.dtype == dtype
    assert losses.tolist() == [264.5]
    assert adapted.tolist() == [-9.5, -20, -29.5]
    assert float(loss) == 49612.5
    assert gradient.tolist() == [3780, 8505, 13230]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_first_order_step_of_three_numbers(dtype):
    """Catches second-order terms that leak into FOMAML: torchmeta's test_update_parameters_first_order."""

    def outer(w):
        solution = mk.inner.FirstOrder().solve(half_squared, mk.inner.SGD(0.5), w, jnp.asarray([4, 5, 6], dtype), 1)
        loss = half_squared(solution.params, jnp.asarray([1, 2, 3], dtype), 0)
        return loss, (solution.params, solution.losses)

    (loss, (adapted, losses)), gradient = jax.value_and_grad(outer, has_aux=True)(jnp.asarray([2, 3, 5], dtype))
    assert losses.tolist() == [1404.5]
    assert adapted.tolist() == [-104, -129.5, -154]
    assert float(loss) == 340312.5
    assert gradient.tolist() == [-825, -1650, -2475]


@exact
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_three_steps_of_three_numbers(adjoint, dtype):
    """Catches a chain that is cut between steps: torchmeta's test_multiple_update_parameters."""

    def outer(w):
        support = jnp.asarray([1, 2, 3], dtype)
        adapted = adjoint.solve(half_squared, mk.inner.SGD(1.0), w, support, 3).params
        return jnp.dot(jnp.asarray([4, 5, 6], dtype), adapted), adapted

    (value, adapted), gradient = jax.value_and_grad(outer, has_aux=True)(jnp.asarray([2, 3, 5], dtype))
    # Three steps from (2, 3, 5) along (1, 2, 3): the prediction 23 is multiplied by 1 - 14 each time.
    assert float(value) == float(jnp.dot(jnp.asarray([4, 5, 6], dtype), adapted))
    assert adapted.tolist() == [-3609, -7219, -10828]
    assert float(value) == -115499
    assert gradient.tolist() == [-5020, -10043, -15066]


def quadratic(theta, args, step):
    del step
    design, targets = args
    return 0.5 * jnp.mean((design @ theta - targets) ** 2)


def moments(design, targets):
    return design.T @ design / len(design), design.T @ targets / len(design)


@exact
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10])
def test_linear_regression_in_closed_form(adjoint, steps):
    """Catches any wrong power of I - αG: identity T1, the adapted parameters and the meta-gradient at k steps."""
    keys = jax.random.split(jax.random.key(0), 5)
    support = (jax.random.normal(keys[0], (7, 3)), jax.random.normal(keys[1], (7,)))
    query = (jax.random.normal(keys[2], (5, 3)), jax.random.normal(keys[3], (5,)))
    theta, rate = jax.random.normal(keys[4], (3,)), 0.3

    (g_s, h_s), (g_q, h_q) = moments(*support), moments(*query)
    contraction = jnp.eye(3) - rate * g_s
    power = np.linalg.matrix_power(contraction, steps)
    series = sum((np.linalg.matrix_power(contraction, j) for j in range(steps)), np.zeros((3, 3)))
    adapted = power @ theta + rate * series @ h_s

    def outer(theta, adjoint):
        solution = adjoint.solve(quadratic, mk.inner.SGD(rate), theta, support, steps)
        return quadratic(solution.params, query, 0), solution

    gradient, solution = jax.grad(outer, has_aux=True)(theta, adjoint)
    np.testing.assert_allclose(solution.params, adapted, atol=1e-14)
    np.testing.assert_allclose(gradient, power @ (g_q @ adapted - h_q), atol=1e-14)
    first_order, _ = jax.grad(outer, has_aux=True)(theta, mk.inner.FirstOrder())
    np.testing.assert_allclose(first_order, g_q @ adapted - h_q, atol=1e-14)


def golden_meta_loss(theta, adjoint):
    """Identity T2's two tasks: slope 1 seen at x = 1, slope -2 seen at x = 2, both judged at x = 1."""

    def one(slope, x_support):
        def inner(theta, args, step):
            del step
            return 0.5 * (args[0] * theta - args[1]) ** 2

        adapted = adjoint.solve(inner, mk.inner.SGD(0.1), theta, (x_support, slope * x_support), 1).params
        return 0.5 * (adapted - slope) ** 2

    return jnp.mean(jax.vmap(one)(jnp.asarray([1.0, -2.0]), jnp.asarray([1.0, 2.0])))


@pytest.mark.parametrize(
    ("adjoint", "at_zero", "optimum"),
    [*((a, -0.045, 1 / 13) for a in EXACT.values()), (mk.inner.FirstOrder(), 0.15, -0.2)],
    ids=[*EXACT, "first_order"],
)
def test_golden_gradient_and_optimum(adjoint, at_zero, optimum):
    """Catches FOMAML in MAML's place: here their gradients differ in sign, and so do their fixed points (T2)."""
    gradient = jax.grad(golden_meta_loss)
    np.testing.assert_allclose(gradient(jnp.zeros(()), adjoint), at_zero, atol=1e-15)
    np.testing.assert_allclose(gradient(jnp.asarray(optimum), adjoint), 0.0, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 4])
def test_without_curvature_first_order_is_exact(steps):
    """Catches a first-order path that differs in more than the Hessian: T4, an inner loss affine in the parameters."""
    y, phi, theta = jnp.arange(4.0), jax.random.normal(jax.random.key(0), (4, 3)), jnp.ones(3)

    def affine(theta, args, step):
        del step
        return -jnp.mean(args[0] * (args[1] @ theta))

    def outer(theta, adjoint):
        return jnp.sum(adjoint.solve(affine, mk.inner.SGD(0.3), theta, (y, phi), steps).params ** 4)

    for adjoint in EXACT.values():
        first_order = jax.grad(outer)(theta, mk.inner.FirstOrder())
        np.testing.assert_allclose(jax.grad(outer)(theta, adjoint), first_order, rtol=1e-14)


@pytest.mark.parametrize("adjoint", [*EXACT.values(), mk.inner.FirstOrder()])
def test_a_rate_of_zero_is_joint_training(adjoint):
    """Catches an outer loss at the wrong parameters: with α = 0 every adjoint gives the plain gradient (T4)."""
    theta, data = jnp.ones(3), jnp.arange(1.0, 4.0)

    def outer(theta):
        return half_squared(adjoint.solve(half_squared, mk.inner.SGD(0.0), theta, data, 3).params, data, 0)

    np.testing.assert_array_equal(jax.grad(outer)(theta), jax.grad(half_squared)(theta, data, 0))


def small_network(theta, args, step):
    del step
    x, y = args
    return jnp.mean((jnp.tanh(x @ theta[:6].reshape(2, 3)) @ theta[6:] - y) ** 2)


@exact
def test_the_exact_gradient_is_the_product_of_hessians_times_first_order(adjoint):
    """Catches Hessians taken at the wrong step or multiplied in the wrong order: T5, with jax.hessian."""
    keys = jax.random.split(jax.random.key(2), 3)
    x, y, theta = (jax.random.normal(k, shape) for k, shape in zip(keys, [(5, 2), (5,), (9,)], strict=True))
    rate, steps, target = 0.2, 4, jnp.ones(5)

    def outer(theta, adjoint):
        adapted = adjoint.solve(small_network, mk.inner.SGD(rate), theta, (x, y), steps).params
        return small_network(adapted, (x, target), 0)

    expected, visited = jax.grad(outer)(theta, mk.inner.FirstOrder()), [theta]
    for _ in range(steps - 1):
        visited.append(visited[-1] - rate * jax.grad(small_network)(visited[-1], (x, y), 0))
    for point in reversed(visited):
        expected = expected - rate * jax.hessian(small_network)(point, (x, y), 0) @ expected
    np.testing.assert_allclose(jax.grad(outer)(theta, adjoint), expected, atol=1e-13)


def test_small_rate_expansion():
    """Catches a wrong sign or factor in either second-order term: T6, whose remainder must shrink 100x per 10x rate."""
    x, theta = jax.random.normal(jax.random.key(4), (5, 2)), jax.random.normal(jax.random.key(5), (9,))
    inner, outer = (x, jnp.zeros(5)), (x[::-1] + 1.0, jnp.ones(5))
    g1, g2 = (jax.grad(small_network)(theta, batch, 0) for batch in (inner, outer))
    h1, h2 = (jax.hessian(small_network)(theta, batch, 0) for batch in (inner, outer))
    first_order_term = h2 @ g1
    second_order_terms = first_order_term + h1 @ g2

    def gradient(rate, adjoint):
        def loss(theta):
            adapted = adjoint.solve(small_network, mk.inner.SGD(rate), theta, inner, 1).params
            return small_network(adapted, outer, 0)

        return jax.grad(loss)(theta)

    for adjoint, term in ((mk.inner.FirstOrder(), first_order_term), (mk.inner.Unrolled(), second_order_terms)):
        remainders = [float(jnp.linalg.norm(gradient(rate, adjoint) - (g2 - rate * term))) for rate in (1e-3, 1e-4)]
        assert 90 < remainders[0] / remainders[1] < 110
