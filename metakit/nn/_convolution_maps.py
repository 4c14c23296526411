"""How each of a convolution's three maps is computed: the one place where that is chosen.

Layouts: images `[n, h, w, c]`, weights `[kh, kw, c, o]`, outputs `[n, h', w', o]`; each has a form with a leading task
axis `t`, where every task has its own weights. Every map has two forms: XLA's own convolution, and patches (every
window of the images as a row) with one matrix product. `_use_xla` chooses; docs/performance.md has the measurements.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


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

    @property
    def unread(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The padding with which a stride-1 kernel undoes this: what the windows read, less what they were given."""
        rows, columns = (
            (kernel - 1 - low, size - 1 + low - (out - 1) * stride)
            for size, kernel, out, stride, (low, _) in zip(
                self.image, self.kernel, self.out, self.stride, self.padding, strict=True
            )
        )
        return rows, columns


def _use_xla(name: str, a: Array, geometry: Geometry, platform: str) -> bool:
    """Whether a map is XLA's own convolution, rather than patches and a product.

    On 2 CPU cores, float32, GFLOP/s of (XLA, patches), inside a scan over tasks:

    | map | 75 x 14x14x64 | 75 x 28x28x1 | 5 x 14x14x64, stride 2, one core |
    |---|---|---|---|
    | output | **157**, 55 | 35, **59** | **80**, 74 |
    | input gradient | **153**, 39 | | 67, **100** |
    | weight gradient | **138**, 94 | 27, **40** | 39, **69** |

    """
    if a.ndim == 5:
        return False  # the only alternative is a grouped convolution, 10 to 50 times slower on a CPU
    if platform != "cpu":
        return True  # not measured; a library for the device knows the un-mapped convolution
    if name == "output":
        return a.shape[-1] > 1
    if name == "weight_gradient":
        return a.shape[-1] > 1 and geometry.stride == (1, 1)
    # A padding of kernel or more would crop here, which is not what was measured.
    return geometry.stride == (1, 1) and min(min(pair) for pair in geometry.unread) >= 0


def output(x: Array, w: Array, geometry: Geometry, platform: str) -> Array:
    """y[n, p, q, o] = Σ x[n, s·p + i, s·q + j, c] w[i, j, c, o], over the padded images."""
    if _use_xla("output", x, geometry, platform):
        return _convolve(x, w, geometry.stride, geometry.padding)
    *lead, n, _, _, _ = x.shape
    y = _matmul(_patches(x, geometry), w.reshape(*lead, -1, w.shape[-1]))
    return y.reshape(*lead, n, *geometry.out, w.shape[-1])


def input_gradient(g: Array, w: Array, geometry: Geometry, platform: str) -> Array:
    """dx[n, s·p + i, s·q + j, c] = Σ g[n, p, q, o] w[i, j, c, o]."""
    if _use_xla("input_gradient", g, geometry, platform):
        flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
        return _convolve(g, flipped, (1, 1), geometry.unread, spread_images=geometry.stride)
    kernel_area, channels, filters = geometry.kernel[0] * geometry.kernel[1], w.shape[-2], w.shape[-1]
    lead = w.shape[:-4]
    weights = w.reshape(*lead, kernel_area * channels, filters)
    patches = _matmul(g.reshape(*lead, -1, filters), jnp.swapaxes(weights, -1, -2))
    return _add_patches(patches.reshape(*g.shape[:-1], kernel_area, channels), geometry)


def weight_gradient(x: Array, g: Array, geometry: Geometry, platform: str) -> Array:
    """dw[i, j, c, o] = Σ x[n, s·p + i, s·q + j, c] g[n, p, q, o]."""
    if _use_xla("weight_gradient", x, geometry, platform):
        # The same sum, read as a convolution of channels (as images) by outputs (as a kernel of their own size). On a
        # CPU, 50 times faster with these transposes written out than by dimension numbers that say the same.
        images, kernel = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3))
        padding = [
            (low, (out - 1) * stride + k - size - low)
            for size, k, out, stride, (low, _) in zip(
                geometry.image, geometry.kernel, geometry.out, geometry.stride, geometry.padding, strict=True
            )
        ]
        return jnp.transpose(_convolve(images, kernel, (1, 1), padding, spread_kernel=geometry.stride), (1, 2, 0, 3))
    patches, lead, filters = _patches(x, geometry), g.shape[:-4], g.shape[-1]
    # gᵀ·patches, not patchesᵀ·g: the larger factor is then read along its rows, which saves a quarter of the time.
    transposed = _matmul(jnp.swapaxes(g.reshape(*lead, -1, filters), -1, -2), patches)
    return jnp.moveaxis(transposed.reshape(*lead, filters, *geometry.kernel, x.shape[-1]), -4, -1)


def _convolve(
    x: Array,
    w: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    spread_images: Sequence[int] = (1, 1),
    spread_kernel: Sequence[int] = (1, 1),
) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        stride,
        padding,
        lhs_dilation=spread_images,
        rhs_dilation=spread_kernel,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=x.dtype,
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
