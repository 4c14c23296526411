"""Batch norm in the inner loop: which step's parameters, whose statistics, and what never adapts."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from metakit import nn


def resolve_step(model: Any, step: Array) -> Any:
    """The model with every per-step norm resolved to one step; other models pass through."""
    return nn.at_step(model, step)


def freeze_on(model: Any, x: Array) -> Any:
    """The model with its batch statistics frozen on `x`."""
    return nn.freeze_statistics(model, x)


def not_statistics(model: Any) -> Any:
    """A filter that leaves out frozen batch statistics: they are measured, so a gradient step on them is a mistake."""

    def is_statistics(node: Any) -> bool:
        return isinstance(node, nn.Statistics)

    def mark(node: Any) -> Any:
        return jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and not is_statistics(node), node)

    return jax.tree.map(mark, model, is_leaf=is_statistics)
