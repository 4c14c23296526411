"""Batch norm in the inner loop: what never adapts."""

from typing import Any

import equinox as eqx
import jax

from metakit import nn


def not_statistics(model: Any) -> Any:
    """A filter that leaves out frozen batch statistics: they are measured, so a gradient step on them is a mistake."""

    def is_statistics(node: Any) -> bool:
        return isinstance(node, nn.Statistics)

    def mark(node: Any) -> Any:
        return jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and not is_statistics(node), node)

    return jax.tree.map(mark, model, is_leaf=is_statistics)
