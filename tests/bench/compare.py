"""Whether two sides compute the same loss and gradient."""

import dataclasses
import math
import pathlib

import numpy as np

# Both sides take the same float64 numbers through some 15 layers, twice, summing at most 5e5 terms; each rounds by
# 1.1e-16 of what it sums, errors of sums grow like the square root of the terms (8e-14), and the division by a
# standard deviation and a cancelling sum cost another factor of 10 or so. Measured: 1e-11 at most. A term left out or a
# wrong sign is 1e-3 and more.
TOLERANCE = 1e-9


class Disagreement(AssertionError):
    """Two sides that should compute the same do not."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest relative difference of two sides, of the loss or of a leaf of the gradient, and where it is."""

    relative: float
    where: str


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], sides: str = "two sides") -> Difference:
    """The largest difference, relative to the leaf's largest number.

    A bias before batch norm changes nothing, so its gradient is zero and what a side returns is rounding; it is held
    to the largest number of the whole gradient instead.
    """
    if ours.keys() != theirs.keys():
        raise Disagreement(f"{sides}: one has {sorted(ours)}, the other {sorted(theirs)}")
    largest = max(float(np.abs(value).max()) for name, value in theirs.items() if name != "loss")
    worst = Difference(0.0, "nowhere")
    for name in ours:
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            raise Disagreement(f"{sides}: {name} is {list(a.shape)} on one, {list(b.shape)} on the other")
        vanishes = name.startswith("gradient/conv") and name.endswith("bias")
        scale = largest if vanishes else float(np.abs(b).max())
        relative = float(np.abs(a.astype(np.float64) - b).max()) / scale if scale else float(np.abs(a).max())
        relative = math.inf if math.isnan(relative) else relative
        if relative > worst.relative:
            worst = Difference(relative, name)
    return worst


def require_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], sides: str) -> Difference:
    """The difference, or a `Disagreement` where it exceeds float64's rounding."""
    found = difference(ours, theirs, sides)
    if found.relative > TOLERANCE:
        raise Disagreement(f"{sides}: {found.where} differs by {found.relative:.1e}, more than {TOLERANCE:.0e}")
    return found
