"""Convolution against `lax.conv_general_dilated`, in every mode of differentiation and mapping."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from metakit.nn._convolution import convolve

# image, kernel, stride, padding: (image height, width), (kernel height, width), ...
GEOMETRIES = {
    "same": ((6, 6), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "valid": ((6, 5), (3, 3), (1, 1), ((0, 0), (0, 0))),
    "strided": ((7, 7), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "strided-even-same": ((6, 6), (3, 3), (2, 2), ((0, 1), (0, 1))),
    "pointwise": ((4, 3), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "pointwise-strided": ((5, 5), (1, 1), (2, 2), ((0, 0), (0, 0))),
    "stride-beyond-kernel": ((8, 7), (2, 2), (3, 3), ((0, 0), (0, 0))),
    "oblong": ((5, 7), (3, 2), (2, 1), ((1, 0), (0, 1))),
    "padding-beyond-kernel": ((4, 4), (2, 2), (1, 1), ((2, 3), (3, 0))),
    "padding-beyond-kernel-strided": ((4, 4), (2, 2), (2, 2), ((2, 3), (3, 0))),
    "kernel-of-image": ((4, 4), (4, 4), (1, 1), ((0, 0), (0, 0))),
    "unread-edge": ((8, 8), (3, 3), (3, 4), ((0, 0), (0, 0))),
}
geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
few = pytest.mark.parametrize(
    "geometry", [GEOMETRIES[n] for n in ("same", "strided", "oblong")], ids=["same", "strided", "oblong"]
)


def ours(geometry):
    return functools.partial(convolve, stride=geometry[2], padding=geometry[3])


def laxs(geometry):
    def convolution(x, w):
        return lax.conv_general_dilated(x, w, geometry[2], geometry[3], dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return convolution


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def operands(geometry, n=2, channels=2, filters=3):
    return draw(n, *geometry[0], channels), draw(*geometry[1], channels, filters, seed=1)


def scalar(convolution):
    """Nonlinear, so that second and third derivatives differ from zero."""
    return lambda x, w: jnp.sum(jnp.sin(convolution(x, w)))


def close(a, b):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-10), a, b)


@geometries
def test_value_and_gradients(geometry):
    """A window off by one, or a transpose that forgets what the stride never reads."""
    x, w = operands(geometry)
    close(ours(geometry)(x, w), laxs(geometry)(x, w))
    close(*(jax.grad(scalar(f(geometry)), (0, 1))(x, w) for f in (ours, laxs)))


MODES = {
    "jvp": lambda f, x, w, v: jax.jvp(f, (x, w), v),
    "jvp of one": lambda f, x, w, v: jax.jvp(lambda w: f(x, w), (w,), v[1:]),
    "reverse over reverse": lambda f, x, w, v: jax.grad(lambda x, w: dot(jax.grad(f, (0, 1))(x, w), v), (0, 1))(x, w),
    "forward over reverse": lambda f, x, w, v: jax.jvp(jax.grad(f, (0, 1)), (x, w), v)[1],
    "reverse over forward": lambda f, x, w, v: jax.grad(lambda x, w: jax.jvp(f, (x, w), v)[1], (0, 1))(x, w),
    "third order": lambda f, x, w, v: jax.grad(lambda x, w: dot(jax.jvp(jax.grad(f, (0, 1)), (x, w), v)[1], v), (0, 1))(
        x, w
    ),
    "checkpoint": lambda f, x, w, v: jax.grad(lambda w: dot(jax.grad(jax.checkpoint(f), (0, 1))(x, w), v))(w),
    "linearize": lambda f, x, w, v: jax.linearize(f, x, w)[1](*v),
}


def dot(a, b):
    return sum(jnp.vdot(p, q) for p, q in zip(a, b, strict=True))


@few
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes_of_differentiation(geometry, mode):
    """A primitive whose transposes are wired to the wrong operand in one of the modes."""
    x, w = operands(geometry)
    tangents = draw(*x.shape, seed=2), draw(*w.shape, seed=3)
    close(*(jax.jit(functools.partial(mode, scalar(f(geometry))))(x, w, tangents) for f in (ours, laxs)))


# axes of x and of w for one or two nested vmaps, outermost first
MAPPINGS = {
    "x": [(0, None)],
    "w": [(None, 0)],
    "both": [(0, 0)],
    "odd axes": [(2, 4)],
    "last axes": [(-1, -1)],
    "both, both": [(0, 0), (0, 0)],
    "x, w": [(0, None), (None, 0)],
    "w, x": [(None, 0), (0, None)],
    "w, w": [(None, 0), (None, 1)],
    "both, x": [(1, 0), (0, None)],
    "x, both": [(0, None), (0, 0)],
    "both, w": [(0, 0), (None, 2)],
}


def with_axes(array, axes, seed):
    """`array` grown by mapped axes, made from the innermost outwards."""
    for size, axis in enumerate(reversed(axes), start=2):
        if axis is not None:
            factors = draw(size, seed=seed + size)
            array = jnp.stack([array * f for f in factors], axis=axis)
    return array


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_mapping(mapping):
    """A batching rule that folds an axis into the wrong place: shapes agree and numbers do not."""
    geometry = GEOMETRIES["oblong"]
    x, w = operands(geometry)
    x = with_axes(x, [a for a, _ in mapping], seed=5)
    w = with_axes(w, [b for _, b in mapping], seed=9)

    def mapped(convolution):
        for axes in reversed(mapping):
            convolution = jax.vmap(convolution, axes)
        return convolution

    f, reference = mapped(ours(geometry)), mapped(laxs(geometry))
    close(f(x, w), reference(x, w))

    # Mapped first and differentiated after: transposes of the folded primitives.
    close(*(jax.grad(scalar(g), (0, 1))(x, w) for g in (f, reference)))

    # Differentiated twice, then mapped: an unmapped cotangent or operand in every place.
    def twice(g):
        return jax.grad(lambda x, w: jnp.sum(jnp.square(jax.grad(scalar(g), 1)(x, w))), (0, 1))

    close(*(jax.jit(mapped(twice(g(geometry))))(x, w) for g in (ours, laxs)))


def adapted_loss(convolution):
    """One inner step and its loss after: the shape of every second-order meta-learner."""

    def loss(w, x):
        return jnp.mean(jnp.square(jnp.tanh(convolution(x, w))))

    return lambda w, x: loss(w - 0.5 * jax.grad(loss)(w, x), x)


@few
def test_adaptation_in_a_scan_over_tasks(geometry):
    """A loop over tasks that mixes one task with the next, or a residual that scan cannot stack."""
    w = operands(geometry)[1]
    x = draw(3, 2, *geometry[0], 2)

    def looped(w, loss):
        step = jax.checkpoint(lambda total, some: (total + loss(w, some), None))
        return lax.scan(step, jnp.zeros(()), x)[0]

    close(*(jax.grad(looped)(w, adapted_loss(f(geometry))) for f in (ours, laxs)))


def grouped(text):
    return any(int(count) > 1 for count in re.findall(r"(?:feature|batch)_group_count = (\d+)", text))


@pytest.mark.optimised
@few
def test_no_grouped_convolution(geometry):
    """XLA's grouped convolution, tens of times slower on a CPU, coming back through a derivative."""
    w, x = operands(geometry)[1], draw(3, 2, *geometry[0], 2)

    def program(convolution):
        meta = jax.value_and_grad(lambda w: jnp.mean(jax.vmap(adapted_loss(convolution), (None, 0))(w, x)))
        lowered = jax.jit(meta).lower(w)
        return lowered.as_text(), lowered.compile().as_text()

    stable, compiled = program(ours(geometry))
    assert not grouped(stable)
    assert "group_count" not in compiled
    # The same look at lax's own convolution does find one, so this test can fail.
    assert grouped(program(laxs(geometry))[0])


def test_shared_weights_stay_one_convolution():
    """Images of several tasks under the same weights run as patches, slower than one convolution."""
    geometry = GEOMETRIES["same"]
    x, w = draw(3, 2, *geometry[0], 2), operands(geometry)[1]
    text = jax.jit(jax.vmap(ours(geometry), (0, None))).lower(x, w).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert "tensor<6x6x6x2xf64>" in text  # 3 tasks of 2 images became 6 images


def test_dtypes_must_agree():
    """Weights of one precision and images of another, failing deep inside a lowering."""
    x, w = operands(GEOMETRIES["same"])
    with pytest.raises(TypeError, match=r"images are float32.*weights float64.*astype\('float64'\)"):
        ours(GEOMETRIES["same"])(x.astype(jnp.float32), w)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(dtype):
    """A matrix product that returns its accumulator's type."""
    x, w = (a.astype(dtype) for a in operands(GEOMETRIES["strided"]))
    f = scalar(ours(GEOMETRIES["strided"]))
    for g in (f, jax.vmap(f, (None, 0))):
        weights = w if g is f else jnp.stack([w, w])
        gradients = jax.grad(lambda x, w, g=g: jnp.sum(g(x, w)), (0, 1))(x, weights)
        assert [a.dtype for a in gradients] == [dtype, dtype]
