"""What the convolutional layers share: their options, checked, and how an image is padded."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, TypeAlias

from metakit._errors import nearest

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = Literal["SAME", "VALID"] | tuple[Pair, ...]


def sizes(name: str, value: Any, dimensions: int) -> tuple[int, ...]:
    """A kernel size or a stride as one number for each axis, from a number or a sequence of them."""
    given = (value,) * dimensions if isinstance(value, Integral) else value
    if not isinstance(given, Sequence) or len(given) != dimensions or not all(_is_count(size) for size in given):
        raise ValueError(f"{name} must be a whole number of at least 1, or {dimensions} of them, got {value!r}.")
    return tuple(int(size) for size in given)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_channels(in_channels: int, out_channels: int) -> None:
    if min(in_channels, out_channels) < 1:
        raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}.")


def checked_padding(padding: Any, dimensions: int) -> Padding:
    """A name as it is, or (before, after) of each axis."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"padding={padding!r} is not known. {nearest(padding, ['SAME', 'VALID'])}")
        return padding
    try:
        given = ((padding, padding),) * dimensions if isinstance(padding, Integral) else padding
        found = tuple((int(before), int(after)) for before, after in given)
    except TypeError:
        found = ()
    if len(found) != dimensions:
        raise ValueError(
            "padding must be 'SAME', 'VALID', a number for every side, or one (before, after) for each of "
            f"{dimensions} axes, got {padding!r}."
        )
    if min(min(pair) for pair in found) < 0:
        raise ValueError(f"padding must be at least 0 on every side, got {padding!r}.")
    return found


def pads(padding: Padding, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> tuple[Pair, ...]:
    """(before, after) of each axis, or a `ValueError` for an input that the kernel does not fit into."""
    if padding == "SAME":
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, stride, strict=True)]
        found = tuple((total // 2, total - total // 2) for total in totals)
    elif padding == "VALID":
        found = tuple((0, 0) for _ in size)
    else:
        found = padding
    if any(n + sum(pad) < k for n, pad, k in zip(size, found, kernel, strict=True)):
        raise ValueError(f"an input of {list(size)} is smaller than the kernel {list(kernel)}.")
    return found
