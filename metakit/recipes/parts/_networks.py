"""The published networks of the data."""

from typing import Any

import jax

from metakit import nn


def curve_network(out_size: int, key: jax.Array) -> nn.MLP:
    """A network of curves.

    Xavier: over four seeds its error after one step is 0.36 to 0.45, He's 0.54 to 0.88 (docs/results.md)."""
    return nn.MLP(1, out_size, width=40, depth=2, weight_init=nn.xavier_uniform, key=key)


def embedding(shape: tuple[int, int] | None, key: jax.Array) -> tuple[Any, int]:
    """A network without a head, and how many features it has; of curves where there is no shape."""
    if shape is None:
        return curve_network(32, key), 32
    channels, size = shape
    return nn.conv4_64(channels, size, key=key), 64 * (size // 16) ** 2


def published_norm(channels: int) -> nn.BatchStatNorm:
    """Batch norm as Reptile and the Meta-Learner LSTM were published with it."""
    return nn.BatchStatNorm(channels, eps=1e-3)
