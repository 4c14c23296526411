"""Pooling whose gradient is cheap."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import typed


def max_pool_last(x: Array, size: int) -> Array:
    """Windows of `[..., h, w, c]`: first which entry is largest, then that entry, chosen by its number.

    The derivative of a maximum tests `x == max(x, y)`; XLA may recompute `x` with other rounding, and the gradient
    of a window is then lost under `jit(vmap)`. A choice by number sends all of it to one entry, and the numbers are
    all that the backward pass reads. NaN is kept, as a maximum would.
    """
    height, width = x.shape[-3] // size, x.shape[-2] // size
    entries = [
        x[..., i : i + size * (height - 1) + 1 : size, j : j + size * (width - 1) + 1 : size, :]
        for i in range(size)
        for j in range(size)
    ]
    index, _ = _largest(list(enumerate(jax.lax.stop_gradient(entries))))
    return jax.lax.select_n(index, *entries)


def _largest(entries: list[tuple[Any, Array]]) -> tuple[Array, Array]:
    """The number and the value of the largest entry, by halves."""
    if len(entries) == 1:
        number, value = entries[0]
        return jnp.broadcast_to(jnp.asarray(number, jnp.int32), value.shape), value
    half = len(entries) // 2
    (i, a), (j, b) = _largest(entries[:half]), _largest(entries[half:])
    first = (a >= b) | jnp.isnan(a)
    return jnp.where(first, i, j), jnp.where(first, a, b)


@typed
def max_pool2d(x: Float[Array, "n c h w"], size: int = 2) -> Float[Array, "n c h2 w2"]:
    """The maximum of each `size` by `size` window; a remainder at the right or lower edge is dropped.

    Written with strided slices: the gradient of `lax.reduce_window` is select-and-scatter, which is slow on
    a CPU and slower in its second derivative.

    **Arguments:**

    - `x`: images `[n, c, h, w]`, with `h` and `w` at least `size`.
    - `size`: side of a window and stride, in pixels; default 2.

    **Returns:** `[n, c, h // size, w // size]`.

    **Raises:** `ValueError` when an image is smaller than one window.

    >>> import jax.numpy as jnp
    >>> max_pool2d(jnp.arange(16.0).reshape(1, 1, 4, 4)).tolist()
    [[[[5.0, 7.0], [13.0, 15.0]]]]
    """
    if size < 1 or min(x.shape[2:]) < size:
        raise ValueError(f"size must lie in 1..{min(x.shape[2:])} for images {list(x.shape[2:])}, got {size}.")
    return jnp.moveaxis(max_pool_last(jnp.moveaxis(x, 1, -1), size), -1, 1)
