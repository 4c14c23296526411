"""The pairwise distances under the metric learners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metakit.learners._distances import cosine, squared_euclidean, unit_rows


def _loop(a, b, one):
    a, b = np.asarray(a), np.asarray(b)
    return np.array([[one(x, y) for y in b] for x in a])


def _cosine(x, y):
    return sum(p * q for p, q in zip(x, y, strict=True)) / np.sqrt(np.sum(x * x) * np.sum(y * y))


def _squared(x, y):
    return np.sum((x - y) ** 2)


@pytest.mark.parametrize(("pairwise", "one"), [(cosine, _cosine), (squared_euclidean, _squared)])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (4, 2, 1)])
def test_equals_the_loop_and_holds_under_vmap(pairwise, one, shape, key):
    """Catches a swapped axis, a norm over the wrong axis, and normalising one side only."""
    n, m, d = shape
    a, b = jax.random.normal(key, (2, n, d)), jax.random.normal(jax.random.fold_in(key, 1), (2, m, d))
    batched = jax.vmap(pairwise)(a, b)
    for task in range(2):
        np.testing.assert_allclose(pairwise(a[task], b[task]), _loop(a[task], b[task], one), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(batched[task], pairwise(a[task], b[task]), rtol=1e-12, atol=1e-12)


def test_squared_euclidean_keeps_its_digits_beside_a_large_offset(key):
    """Catches the plain expanded form: in float32, an offset of 1000 leaves no digit of distances near 1."""
    a = jax.random.normal(key, (4, 3))
    b = jax.random.normal(jax.random.fold_in(key, 1), (5, 3))
    near = squared_euclidean((a + 1000).astype(jnp.float32), (b + 1000).astype(jnp.float32))
    np.testing.assert_allclose(near, squared_euclidean(a, b), rtol=2e-3, atol=2e-3)


def test_squared_euclidean_derivatives_are_those_of_the_plain_formula(key):
    """Catches an offset that swallows part of the gradient or curvature, also where the points coincide."""
    b = jax.random.normal(key, (3, 2))

    def plain(a, b):
        return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)

    a = jnp.concatenate([b[:1], b[1:] + 0.5])
    for order in (jax.jacobian, lambda f, argnums: jax.jacobian(jax.jacobian(f, argnums), argnums)):
        for argument in (0, 1):
            np.testing.assert_allclose(
                order(squared_euclidean, argument)(a, b), order(plain, argument)(a, b), atol=1e-12
            )


def test_cosine_of_a_zero_row_is_zero_with_a_finite_gradient():
    """Catches 0/0 in the value, and the NaN that a single `where` leaves in its derivatives."""
    a = jnp.array([[0.0, 0.0], [1.0, 2.0]])
    b = jnp.array([[2.0, 1.0], [0.0, 0.0]])
    value = cosine(a, b)
    assert value[0].tolist() == [0.0, 0.0]
    assert value[1, 1] == 0.0
    for argument in (0, 1):
        jacobian = jax.jacobian(cosine, argument)
        assert np.isfinite(jacobian(a, b)).all()
        assert np.isfinite(jax.jacobian(jacobian, argument)(a, b)).all()
    assert (jax.jacobian(cosine, 0)(a, b)[0, :, 0] == 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e25])
def test_cosine_does_not_depend_on_the_size_of_a_row(size):
    """Catches an epsilon in the denominator, and squares that leave the range of float32."""
    a = jnp.array([[3.0, 4.0]], dtype=jnp.float32)
    b = jnp.array([[4.0, 3.0]], dtype=jnp.float32)
    np.testing.assert_allclose(cosine(jnp.float32(size) * a, b), 24 / 25, rtol=1e-6)


def test_unit_rows_gradient_is_the_projection(key):
    """Catches the gradient lost through the stopped scale: d(a/|a|)/da = (I - uu')/|a|."""
    a = jax.random.normal(key, (4,))
    u = a / jnp.linalg.norm(a)
    expected = (jnp.eye(4) - jnp.outer(u, u)) / jnp.linalg.norm(a)
    np.testing.assert_allclose(jax.jacobian(lambda v: unit_rows(v[None])[0])(a), expected, atol=1e-12)
