"""Convolution layer on batches of sequences."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._convolution import convolve
from ._initialisers import Initialiser, xavier_uniform
from ._padding import Padding, check_channels, checked_padding, pads, sizes


class Conv1d(eqx.Module):
    """One-dimensional convolution that stays fast when every task has weights of its own; see `Conv2d`.

    **Arguments:**

    - `in_channels`, `out_channels`: at least 1.
    - `kernel_size`: length of the window.
    - `stride`: default 1.
    - `padding`: `"SAME"` (default), `"VALID"`, a number for both ends, or ((before, after),).
    - `use_bias`: default `True`; the bias starts at zero.
    - `weight_init`: default Xavier uniform.
    - `key`: random key of the initial weights.

    **Returns** (of a call): `[n, out_channels, length']` for `x` of `[n, in_channels, length]`.

    **Raises:** `ValueError` for a wrong rank or number of channels, an unknown or negative padding, or
    sequences shorter than the kernel; `TypeError` when sequences and weights differ in dtype.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.Conv1d(2, 8, 3, stride=2, key=jax.random.key(0))(jnp.ones((5, 2, 28))).shape
    (5, 8, 14)
    """

    weight: Float[Array, "k in out"]
    bias: Float[Array, " out"] | None
    stride: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding | int | Sequence[Sequence[int]] = "SAME",
        use_bias: bool = True,
        weight_init: Initialiser = xavier_uniform,
        key: PRNGKey,
    ):
        check_channels(in_channels, out_channels)
        (length,), (step,) = sizes("kernel_size", kernel_size, 1), sizes("stride", stride, 1)
        self.weight = weight_init(key, (length, in_channels, out_channels), length * in_channels, length * out_channels)
        self.bias = jnp.zeros((out_channels,), self.weight.dtype) if use_bias else None
        self.stride, self.padding = step, checked_padding(padding, 1)

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n c length"]:
        channels = self.weight.shape[1]
        if x.ndim != 3 or x.shape[1] != channels:
            raise ValueError(
                f"this Conv1d takes a batch of sequences [n, {channels}, length], got {list(x.shape)}. Add an axis "
                "to one sequence by x[None], and to sequences of one channel by x[:, None]."
            )
        ends = pads(self.padding, x.shape[2:], self.weight.shape[:1], (self.stride,))[0]
        # A sequence is an image one pixel high.
        images = jnp.moveaxis(x, 1, -1)[:, None]
        y = convolve(images, self.weight[None], stride=(1, self.stride), padding=((0, 0), ends))[:, 0]
        return jnp.moveaxis(y if self.bias is None else y + self.bias[None, None], -1, 1)
