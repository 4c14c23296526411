"""What the convolutional layers share: their options, checked, and how an image is padded."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax

from metakit._errors import nearest

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = Literal["SAME", "VALID"] | int | tuple[Pair, ...]


def check_sizes(in_channels: int, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int]) -> None:
    if min(in_channels, out_channels, *kernel_size, *stride) < 1:
        raise ValueError(
            "in_channels, out_channels, kernel_size and stride must be at least 1, got "
            f"{in_channels}, {out_channels}, {tuple(kernel_size)} and {tuple(stride)}."
        )


def check_padding(padding: Padding, dimensions: int) -> None:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"padding={padding!r} is not known. {nearest(padding, ['SAME', 'VALID'])}")
        return
    if isinstance(padding, tuple) and len(padding) != dimensions:
        raise ValueError(f"padding must have one (before, after) for each of {dimensions} axes, got {padding}.")
    if min(jax.tree.leaves(padding)) < 0:
        raise ValueError(f"padding must be at least 0 on every side, got {padding}.")


def pads(padding: Padding, image: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> tuple[Pair, ...]:
    """(before, after) of each axis, or a `ValueError` for images that the kernel does not fit into."""
    if isinstance(padding, tuple):
        found = padding
    elif isinstance(padding, int):
        found = tuple((padding, padding) for _ in image)
    elif padding == "VALID":
        found = tuple((0, 0) for _ in image)
    else:
        totals = [max((-(-size // s) - 1) * s + k - size, 0) for size, k, s in zip(image, kernel, stride, strict=True)]
        found = tuple((total // 2, total - total // 2) for total in totals)
    if any(size + sum(pad) < k for size, pad, k in zip(image, found, kernel, strict=True)):
        raise ValueError(f"images of {list(image)} are smaller than the kernel {list(kernel)}.")
    return found
