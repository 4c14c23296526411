"""Convolution of channels-last images, one bilinear family.

Under `vmap` over weights, `lax.conv_general_dilated` becomes a grouped convolution, which XLA runs very slowly on a
CPU and gathers from every device when it is sharded. Here mapped weights are a task axis of `_convolution_maps`.
"""

from jaxtyping import Array

from ._bilinear import Map, Shape, bilinear
from ._convolution_maps import Geometry, input_gradient, output, weight_gradient


def _out_shape(x: Shape, w: Shape, geometry: Geometry) -> Shape:
    return (*x[:-3], *geometry.out, w[-1])


def _image_shape(g: Shape, w: Shape, geometry: Geometry) -> Shape:
    return (*g[:-3], *geometry.image, w[-2])


def _weight_shape(x: Shape, g: Shape, geometry: Geometry) -> Shape:
    return (*x[:-4], *geometry.kernel, x[-1], g[-1])


_convolution = bilinear(
    "metakit_convolution",
    rank=4,
    output=Map(output, _out_shape),
    input_gradient=Map(input_gradient, _image_shape),
    weight_gradient=Map(weight_gradient, _weight_shape),
)


def convolve(x: Array, w: Array, *, stride: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    """Cross-correlate images `[n, h, w, c]` with weights `[kh, kw, c, o]`."""
    if x.dtype != w.dtype:
        raise TypeError(
            f"images are {x.dtype} and the convolution's weights {w.dtype}; they must be alike. Convert the "
            f"images with x.astype({str(w.dtype)!r})."
        )
    return _convolution(x, w, Geometry((x.shape[1], x.shape[2]), (w.shape[0], w.shape[1]), stride, padding))
