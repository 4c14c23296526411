"""The product inside a linear layer against `jnp.matmul`, in every mode of differentiation and mapping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metakit.nn import _dense
from metakit.nn._dense import dense


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def scalar(product):
    return lambda x, w: jnp.sum(jnp.sin(product(x, w)))


def close(a, b):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-10), a, b)


def hessian_vector(f, x, w, v):
    return jax.jvp(jax.grad(f, (0, 1)), (x, w), v)[1]


def third(f, x, w, v):
    return jax.grad(lambda x, w: sum(jnp.vdot(a, b) for a, b in zip(hessian_vector(f, x, w, v), v, strict=True)))(x, w)


MODES = {
    "value": lambda f, x, w, v: f(x, w),
    "gradient": lambda f, x, w, v: jax.grad(f, (0, 1))(x, w),
    "jvp": lambda f, x, w, v: jax.jvp(f, (x, w), v),
    "forward over reverse": hessian_vector,
    "third order": third,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("axes", [None, (0, None), (None, 0), (0, 0), (1, 2)], ids=str)
def test_equals_matmul(mode, axes):
    """A transpose written out for the wrong factor, or a batching rule that mixes tasks."""
    x, w = draw(4, 3), draw(3, 2, seed=1)
    if axes is not None:
        x, w = (a if at is None else jnp.stack([a, 2 * a, -a], at) for a, at in zip((x, w), axes, strict=True))
    tangents = draw(*x.shape, seed=2), draw(*w.shape, seed=3)

    def mapped(product):
        return scalar(product if axes is None else jax.vmap(product, axes))

    close(*(jax.jit(functools.partial(mode, mapped(f)))(x, w, tangents) for f in (dense, jnp.matmul)))


@pytest.mark.parametrize("platform", ["cpu", "other"])
def test_weight_gradient_on_every_platform(platform):
    """The form for other platforms, which no test here would otherwise run."""
    x, g = draw(5, 4, 3), draw(5, 4, 2, seed=1)
    close(_dense._weight_gradient(x, g, None, platform), jnp.einsum("tni,tno->tio", x, g))
