"""Convolution layer on batches of images."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._convolution import convolve
from ._initialisers import Initialiser, xavier_uniform
from ._padding import Padding, check_channels, checked_padding, pads, sizes


class Conv2d(eqx.Module):
    """Two-dimensional convolution that stays fast when every task has weights of its own.

    **Arguments:**

    - `in_channels`, `out_channels`: at least 1.
    - `kernel_size`: side of the window, or (height, width).
    - `stride`: default 1.
    - `padding`: `"SAME"` (default; an odd remainder goes to the lower right, as in TensorFlow and XLA),
      `"VALID"`, a number for every side, or ((top, bottom), (left, right)).
    - `use_bias`: default `True`; the bias starts at zero.
    - `weight_init`: default Xavier uniform.
    - `key`: random key of the initial weights.

    **Returns** (of a call): `[n, out_channels, h', w']` for `x` of `[n, in_channels, h, w]`.

    **Raises:** `ValueError` for sizes or strides below 1, a wrong rank or number of channels, an unknown or
    negative padding, or images smaller than the kernel; `TypeError` when images and weights differ in dtype.

    Under `jax.vmap` over weights, `jax.lax.conv_general_dilated` (and `eqx.nn.Conv2d` with it) becomes a
    grouped convolution, which XLA runs tens of times slower on a CPU; this layer becomes a batched matrix
    product.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.Conv2d(1, 8, 3, stride=2, key=jax.random.key(0))(jnp.ones((5, 1, 28, 28))).shape
    (5, 8, 14, 14)
    """

    weight: Float[Array, "kh kw in out"]
    bias: Float[Array, " out"] | None
    stride: tuple[int, int] = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding | int | Sequence[Sequence[int]] = "SAME",
        use_bias: bool = True,
        weight_init: Initialiser = xavier_uniform,
        key: PRNGKey,
    ):
        check_channels(in_channels, out_channels)
        kernel, strides = sizes("kernel_size", kernel_size, 2), sizes("stride", stride, 2)
        area = kernel[0] * kernel[1]
        self.weight = weight_init(key, (*kernel, in_channels, out_channels), area * in_channels, area * out_channels)
        self.bias = jnp.zeros((out_channels,), self.weight.dtype) if use_bias else None
        self.stride, self.padding = (strides[0], strides[1]), checked_padding(padding, 2)

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n c h w"]:
        if x.ndim != 4:
            raise ValueError(
                f"this Conv2d takes a batch of images [n, {self.weight.shape[2]}, height, width], got "
                f"{list(x.shape)}. Add an axis to one image by x[None], and to grey images by x[:, None]."
            )
        return jnp.moveaxis(self.channels_last(jnp.moveaxis(x, 1, -1)), -1, 1)

    def channels_last(self, x: Array) -> Array:
        """The same on `[n, h, w, c]`, the layout inside the convolutional networks."""
        if x.shape[-1] != self.weight.shape[2]:
            raise ValueError(
                f"this Conv2d takes {self.weight.shape[2]} channels, got {x.shape[-1]} in images of "
                f"{list(x.shape[1:3])}. Images are [n, channels, height, width] in metakit."
            )
        top_bottom, left_right = pads(self.padding, x.shape[1:3], self.weight.shape[:2], self.stride)
        y = convolve(x, self.weight, stride=self.stride, padding=(top_bottom, left_right))
        return y if self.bias is None else y + self.bias[None, None, None]
