"""Convolution against lax over many shapes: kernels, strides and padding, in both precisions, twice differentiated."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from metakit.nn import _convolution_maps as maps
from metakit.nn._convolution import convolve


@st.composite
def geometries(draw):
    def axis():
        kernel = draw(st.integers(1, 4))
        low, high = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        size = draw(st.integers(max(1, kernel - low - high), 7))
        return size, kernel, draw(st.integers(1, 3)), (low, high)

    rows, columns = axis(), axis()
    return maps.Geometry(*(pair for pair in zip(rows, columns, strict=True)))


problems = st.tuples(
    geometries(), st.integers(1, 3), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.integers(0, 2**31)
)


def laxs(x, w, geometry):
    return lax.conv_general_dilated(x, w, geometry.stride, geometry.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def ours(x, w, geometry):
    return convolve(x, w, stride=geometry.stride, padding=geometry.padding)


def derivatives(convolution, geometry, x, w, v):
    """Value, gradients, and the Hessian (pure and mixed second derivatives) times a vector."""

    def scalar(x, w):
        return jnp.sum(jnp.sin(convolution(x, w, geometry)))

    gradient, product = jax.jvp(jax.grad(scalar, (0, 1)), (x, w), v)
    return convolution(x, w, geometry), gradient, product


run = jax.jit(derivatives, static_argnums=(0, 1))
run_mapped = jax.jit(
    lambda geometry, x, w, v: jax.vmap(functools.partial(derivatives, ours, geometry))(x, w, v), static_argnums=0
)


def one_after_another(geometry, x, w, v):
    each = [run(laxs, geometry, x[i], w[i], tuple(a[i] for a in v)) for i in range(len(x))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def cast(arrays, dtype):
    x, w, *v = (a.astype(dtype) for a in arrays)
    return x, w, tuple(v)


def as_accurate(a, b, exact):
    """Another order of summation errs as much as lax's own; the largest number's last few bits are granted to both."""
    a, b, exact = map(np.asarray, (a, b, exact))
    error, allowed = np.abs(a - exact).max(), np.abs(b - exact).max()
    assert a.dtype == np.float32
    assert error <= 4 * allowed + 16 * np.finfo(np.float32).eps * np.abs(exact).max()


def check(problem):
    geometry, n, channels, filters, seed = problem
    rng = np.random.default_rng(seed)
    shapes = [(n, *geometry.image, channels), (*geometry.kernel, channels, filters)] * 2
    shared = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    # Weights of its own for each task: twice the problem, scaled apart, against one task after another.
    own = [jnp.stack([a, -0.5 * a[::-1]]) for a in shared]
    for arrays, found, plain in (
        (shared, functools.partial(run, ours), functools.partial(run, laxs)),
        (own, run_mapped, one_after_another),
    ):
        double = cast(arrays, jnp.float64)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
            found(geometry, *double),
            plain(geometry, *double),
        )
        single = cast(arrays, jnp.float32)
        exact = plain(geometry, *cast([*single[:2], *single[2]], jnp.float64))
        jax.tree.map(as_accurate, found(geometry, *single), plain(geometry, *single), exact)


settings = functools.partial(hypothesis.settings, deadline=None, derandomize=True, database=None)


@settings(max_examples=6)
@hypothesis.given(problems)
def test_some_shapes(problem):
    """A stride, a padding or a kernel that none of the named geometries has."""
    check(problem)


@pytest.mark.slow
@pytest.mark.optimised
@settings(max_examples=25)
@hypothesis.given(problems)
def test_many_shapes(problem):
    """As above, further."""
    check(problem)
    check_maps(problem)


def check_maps(problem):
    geometry, n, channels, filters, seed = problem
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(n, *geometry.image, channels)))
    w = jnp.asarray(rng.normal(size=(*geometry.kernel, channels, filters)))
    g = jnp.asarray(rng.normal(size=(n, *geometry.out, filters)))

    @jax.jit
    def all_forms(x, w, g):
        y, transpose = jax.vjp(functools.partial(laxs, geometry=geometry), x, w)
        truth = (y, *transpose(g))
        found = [(one(x, w, g, "cpu"), one(x, w, g, "other")) for one in (alone, with_task_axis)]
        return truth, found

    def alone(x, w, g, platform):
        return (
            maps.output(x, w, geometry, platform),
            maps.input_gradient(g, w, geometry, platform),
            maps.weight_gradient(x, g, geometry, platform),
        )

    def with_task_axis(x, w, g, platform):
        return tuple(a[0] for a in alone(x[None], w[None], g[None], platform))

    truth, found = all_forms(x, w, g)
    for forms in jax.tree.leaves(
        found, is_leaf=lambda node: isinstance(node, tuple) and not isinstance(node[0], tuple)
    ):
        for a, b in zip(forms, truth, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@settings(max_examples=10)
@hypothesis.given(problems)
def test_every_form_of_every_map(problem):
    """The forms for other platforms, which no test here would otherwise run, and both forms of each on this one."""
    check_maps(problem)
