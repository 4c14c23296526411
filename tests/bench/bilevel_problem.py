"""One bilevel problem for all sides: numbers only, so that the PyTorch worker can import it.

An MLP of tanh layers on a batch, trained by gradient descent (or heavy-ball momentum) with a weight decay. What is
differentiated: the validation loss at the end, by the initial weights and the decay.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the network and its batch are."""

    sizes: tuple[int, ...] = (64, 256, 256, 256, 1)
    examples: int = 512
    # At 0.05 the training is chaotic: after 150 steps even two exact adjoints differ by 2 %.
    rate: float = 0.01
    decay: float = 1e-4
    momentum: float = 0.9


FULL, SMALL = Size(), Size(sizes=(8, 16, 16, 1), examples=32)


def numbers(size: Size, dtype: str) -> dict[str, Any]:
    """Weights and data, the same for every side."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for i, (n, m) in enumerate(zip(size.sizes[:-1], size.sizes[1:], strict=True)):
        found[f"w{i}"] = rng.normal(size=(n, m)) / np.sqrt(n)
        found[f"b{i}"] = np.zeros(m)
    for part in ("train", "valid"):
        found[f"{part}_x"] = x = rng.normal(size=(size.examples, size.sizes[0]))
        found[f"{part}_y"] = np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    return {name: value.astype(dtype) for name, value in found.items()}
