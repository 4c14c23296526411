"""Convolution as one bilinear family, so that per-task weights never become a grouped convolution.

A convolution is linear in the images x and in the weights w: one trilinear form T(x, w, g), read three ways.

    output            y  = T(x, w, ·)
    input gradient    dx = T(·, w, g)
    weight gradient   dw = T(x, ·, g)

The transpose of each with respect to either operand is another of the three. Primitives that name each
other as their transposes are therefore closed under differentiation, to any order and in any mode (a nested
`custom_vjp` would fail forward-over-reverse). `vmap` gives a grouped convolution, which XLA runs very
slowly on a CPU and gathers from every device when it is sharded; the batching rule here folds mapped axes
into one explicit leading task axis instead, or into the batch of images where the weights are shared.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from ._convolution_maps import Geometry, input_gradient, output, weight_gradient


def _out_shape(x: tuple[int, ...], w: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    return (*x[:-3], *geometry.out, w[-1])


def _image_shape(g: tuple[int, ...], w: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    return (*g[:-3], *geometry.image, w[-2])


def _weight_shape(x: tuple[int, ...], g: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    return (*x[:-4], *geometry.kernel, x[-1], g[-1])


def _define(name: str, compute: Callable[..., Array], shape: Callable[..., tuple[int, ...]]) -> Primitive:
    """A primitive of two arrays that both have a leading task axis, or neither."""
    primitive = Primitive(name)

    def abstract(a: Any, b: Any, *, geometry: Geometry) -> Any:
        out = shape(a.shape, b.shape, geometry)
        # `update` keeps the manual axes over which the operands vary. Without them
        # `shard_map(check_vma=True)` refuses the cotangents or, worse, leaves out the sum over devices.
        return a.update(shape=out, weak_type=False, sharding=_sharding(a, b, len(out)))

    def lower(a: Array, b: Array, *, geometry: Geometry) -> Array:
        if a.ndim == 5 and a.shape[0] == 1:  # a chunk of one task: XLA's own convolution is open to it again
            return compute(a[0], b[0], geometry)[None]
        return compute(a, b, geometry)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(functools.partial(_bind, primitive), static_argnames="geometry"))
    mlir.register_lowering(primitive, mlir.lower_fun(lower, multiple_results=False))
    return primitive


def _sharding(a: Any, b: Any, rank: int) -> NamedSharding:
    """Inside `shard_map` and outside any mesh, types say nothing of how an array is split."""
    split = [x for x in (a, b) if any(axis is not None for axis in x.sharding.spec)]
    if split:
        raise ValueError(
            f"a convolution got {split[0].str_short()}, which an Explicit mesh (jax.make_mesh's default) "
            "splits in its type. Make the mesh by mk.sharding.task_mesh, or with "
            "axis_types=(jax.sharding.AxisType.Auto,), or convolve inside jax.shard_map."
        )
    return a.sharding.update(spec=PartitionSpec(*[None] * rank))


def _bind(primitive: Primitive, a: Array, b: Array, geometry: Geometry) -> Array:
    return primitive.bind(a, b, geometry=geometry)


output_p = _define("metakit_conv_output", output, _out_shape)
input_gradient_p = _define("metakit_conv_input_gradient", input_gradient, _image_shape)
weight_gradient_p = _define("metakit_conv_weight_gradient", weight_gradient, _weight_shape)


def _register_derivatives() -> None:
    # bilinear_transpose(cotangent, first operand, second operand): the one asked for is undefined.
    def of(primitive: Primitive, *order: int) -> Callable[..., Array]:
        def transpose(ct: Array, a: Array, b: Array, *, geometry: Geometry) -> Array:
            operands = (ct, a, b)
            return primitive.bind(*(operands[i] for i in order), geometry=geometry)

        return transpose

    ad.defbilinear(output_p, of(input_gradient_p, 0, 2), of(weight_gradient_p, 1, 0))
    ad.defbilinear(input_gradient_p, of(output_p, 0, 2), of(weight_gradient_p, 0, 1))
    ad.defbilinear(weight_gradient_p, of(input_gradient_p, 2, 0), of(output_p, 1, 0))


_register_derivatives()


def _batch(
    primitive: Primitive, args: Sequence[Array], dims: Sequence[Any], *, geometry: Geometry
) -> tuple[Array, int]:
    a, b = args
    a_dim, b_dim = dims
    size = a.shape[a_dim] if a_dim is not None else b.shape[b_dim]
    if primitive is not weight_gradient_p and b_dim is None:
        return _fold_into_images(primitive, _to_front(a, a_dim, size), b, geometry), 0
    a, b = (_to_front(x, dim, size) for x, dim in ((a, a_dim), (b, b_dim)))
    lead = a.shape[:-4]  # the mapped axis, and the task axis if there already is one
    tasks = math.prod(lead)
    folded = primitive.bind(a.reshape(tasks, *a.shape[-4:]), b.reshape(tasks, *b.shape[-4:]), geometry=geometry)
    return folded.reshape(*lead, *folded.shape[1:]), 0


def _to_front(x: Array, dim: Any, size: int) -> Array:
    return jnp.broadcast_to(x[None], (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)


def _fold_into_images(primitive: Primitive, images: Array, w: Array, geometry: Geometry) -> Array:
    """Shared weights: `[b, (t,) n, ...]` images are `[(t,) b·n, ...]` images."""
    size, *lead, n, height, width, channels = images.shape
    together = jnp.moveaxis(images, 0, len(lead)).reshape(*lead, size * n, height, width, channels)
    y = primitive.bind(together, w, geometry=geometry)
    return jnp.moveaxis(y.reshape(*lead, size, n, *y.shape[-3:]), len(lead), 0)


for _primitive in (output_p, input_gradient_p, weight_gradient_p):
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)


def _varying(x: Array) -> frozenset[Any]:
    # JAX renamed `vma` to `manual_axis_type.varying` by 0.10.2; outside `shard_map(check_vma=True)` it is
    # empty.
    kind = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def _vary_alike(x: Array, w: Array) -> tuple[Array, Array]:
    """What JAX does for the operands of its own primitives; its transpose is the sum over devices."""
    together = _varying(x) | _varying(w)
    x, w = (
        jax.lax.pcast(a, tuple(sorted(missing)), to="varying") if (missing := together - _varying(a)) else a
        for a in (x, w)
    )
    return x, w


def convolve(x: Array, w: Array, *, stride: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    """Cross-correlate images `[n, h, w, c]` with weights `[kh, kw, c, o]`."""
    if x.dtype != w.dtype:
        raise TypeError(
            f"images are {x.dtype} and the convolution's weights {w.dtype}; they must be alike. Convert the "
            f"images with x.astype({str(w.dtype)!r})."
        )
    geometry = Geometry((x.shape[1], x.shape[2]), (w.shape[0], w.shape[1]), stride, padding)
    x, w = _vary_alike(x, w)
    return output_p.bind(x, w, geometry=geometry)
