"""How each of a convolution's three maps is computed: the one place where that is chosen.

Layouts: images `[n, h, w, c]`, weights `[kh, kw, c, o]`, outputs `[n, h', w', o]`; each has a form with a
leading task axis `t`, where every task has its own weights.

The choice is by measurement (2 CPU cores, float32, inside a scan over tasks; 75 images of 14x14x64, 64
filters 3x3):

| map | XLA's own convolution | patches + matmul | chosen without a task axis | with one |
|---|---|---|---|---|
| output | 143 GFLOP/s | 55 | XLA | patches |
| input gradient, stride 1 | 15 as derived, 139 with flipped weights | 39 | flipped | patches |
| input gradient, stride 2 | 29 | 55 | patches | patches |
| weight gradient | 1 | 43 | patches | patches |

With a task axis XLA would run a grouped convolution, 10 to 50 times slower than either.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """The sizes that do not follow from two of the three operands alone."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def out(self) -> tuple[int, int]:
        height, width = (
            (size + sum(pad) - kernel) // stride + 1
            for size, pad, kernel, stride in zip(self.image, self.padding, self.kernel, self.stride, strict=True)
        )
        return height, width


def output(x: Array, w: Array, geometry: Geometry) -> Array:
    """y[n, p, q, o] = Σ x[n, s·p + i, s·q + j, c] w[i, j, c, o], over the padded images."""
    *lead, n, _, _, channels = x.shape
    if w.ndim == 4 and channels > 1:
        return _convolve(x, w, geometry.stride, geometry.padding)
    y = _matmul(_patches(x, geometry), w.reshape(*lead, -1, w.shape[-1]))
    return y.reshape(*lead, n, *geometry.out, w.shape[-1])


def input_gradient(g: Array, w: Array, geometry: Geometry) -> Array:
    """dx[n, s·p + i, s·q + j, c] = Σ g[n, p, q, o] w[i, j, c, o]."""
    if w.ndim == 4 and geometry.stride == (1, 1) and _flippable(geometry):
        flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
        padding = [
            (kernel - 1 - low, image - 1 + low - (out - 1))
            for kernel, image, out, (low, _) in zip(
                geometry.kernel, geometry.image, geometry.out, geometry.padding, strict=True
            )
        ]
        return _convolve(g, flipped, (1, 1), padding)
    kernel_area, channels, filters = geometry.kernel[0] * geometry.kernel[1], w.shape[-2], w.shape[-1]
    lead = w.shape[:-4]
    weights = w.reshape(*lead, kernel_area * channels, filters)
    patches = _matmul(g.reshape(*lead, -1, filters), jnp.swapaxes(weights, -1, -2))
    return _add_patches(patches.reshape(*g.shape[:-1], kernel_area, channels), geometry)


def weight_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """dw[i, j, c, o] = Σ x[n, s·p + i, s·q + j, c] g[n, p, q, o]."""
    if x.ndim == 4 and geometry.stride == (1, 1) and x.shape[-1] > 1:
        # The same sum, read as a convolution of channels (as images) by outputs (as a kernel of their own size).
        # XLA runs it 50 times faster with these transposes written out than with dimension numbers that say the same.
        channels_first, kernel = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3))
        dw = _convolve(channels_first, kernel, geometry.stride, geometry.padding)
        return jnp.transpose(dw, (1, 2, 0, 3))
    patches, lead, filters = _patches(x, geometry), g.shape[:-4], g.shape[-1]
    # gᵀ·patches, not patchesᵀ·g: the larger factor is then read along its rows, which saves a quarter of the time.
    transposed = _matmul(jnp.swapaxes(g.reshape(*lead, -1, filters), -1, -2), patches)
    return jnp.moveaxis(transposed.reshape(*lead, filters, *geometry.kernel, x.shape[-1]), -4, -1)


def _flippable(geometry: Geometry) -> bool:
    # A padding of kernel or more would need a negative padding here.
    return all(low < k and high < k for k, (low, high) in zip(geometry.kernel, geometry.padding, strict=True))


def _convolve(x: Array, w: Array, stride: Sequence[int], padding: Sequence[tuple[int, int]]) -> Array:
    return lax.conv_general_dilated(
        x, w, stride, padding, dimension_numbers=_LAYOUT, preferred_element_type=x.dtype
    )


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=a.dtype)


def _offsets(geometry: Geometry) -> list[tuple[int, int]]:
    return [(i, j) for i in range(geometry.kernel[0]) for j in range(geometry.kernel[1])]


def _patches(x: Array, geometry: Geometry) -> Array:
    """`[..., n, h, w, c]` to `[..., n·h'·w', kh·kw·c]`: every window of the padded images as a row."""
    *lead, n, _, _, channels = x.shape
    (height, width), (down, across) = geometry.out, geometry.stride
    x = jnp.pad(x, [(0, 0)] * (len(lead) + 1) + [*geometry.padding, (0, 0)])
    windows = [
        x[..., i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across, :]
        for i, j in _offsets(geometry)
    ]
    return jnp.concatenate(windows, axis=-1).reshape(*lead, n * height * width, len(windows) * channels)


def _add_patches(patches: Array, geometry: Geometry) -> Array:
    """The transpose of `_patches`: `[..., h', w', kh·kw, c]` added into images `[..., h, w, c]`."""
    (height, width), (down, across) = geometry.out, geometry.stride
    sizes = [size + sum(pad) for size, pad in zip(geometry.image, geometry.padding, strict=True)]
    zero = jnp.zeros((), patches.dtype)
    lead = [(0, 0, 0)] * (patches.ndim - 4)
    total = None
    for index, (i, j) in enumerate(_offsets(geometry)):
        # `pad` with an interior puts a window's pixels back `stride` apart; XLA fuses the nine pads and sums.
        edges = [
            *lead,
            (i, sizes[0] - i - (down * (height - 1) + 1), down - 1),
            (j, sizes[1] - j - (across * (width - 1) + 1), across - 1),
            (0, 0, 0),
        ]
        placed = lax.pad(patches[..., index, :], zero, edges)
        total = placed if total is None else total + placed
    assert total is not None
    (top, _), (left, _) = geometry.padding
    return total[..., top : top + geometry.image[0], left : left + geometry.image[1], :]
