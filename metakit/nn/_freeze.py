"""Statistics of one batch, frozen into a model: the inductive and the running batch-norm policies."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array

from ._norm import BatchStatNorm, Statistics


def _is_norm(node: Any) -> bool:
    return isinstance(node, BatchStatNorm)


def _with_statistics(norm: BatchStatNorm, statistics: Statistics | None) -> BatchStatNorm:
    return eqx.tree_at(lambda n: n.statistics, norm, statistics, is_leaf=lambda leaf: leaf is None)


class _Notes:
    """Statistics written down while a model runs; hashable, so that it may cross a `jax.jit`."""

    def __init__(self, count: int):
        self.found: list[Statistics | None] = [None] * count
        self.trace = get_opaque_trace_state()

    def write(self, index: int, statistics: Statistics) -> None:
        if get_opaque_trace_state() != self.trace:
            raise ValueError(
                f"the model calls its BatchStatNorm number {index} inside a jax.jit, jax.checkpoint, "
                "jax.lax.scan or jax.vmap of its own, out of which its statistics cannot be recorded. Apply "
                "that transformation outside the model."
            )
        if self.found[index] is not None:
            raise ValueError(
                f"the model calls its BatchStatNorm number {index} more than once, so it has no one set of "
                "statistics to freeze. Give each call a norm of its own."
            )
        self.found[index] = statistics


class _Recorder(eqx.Module):
    """A norm that also writes down the statistics it used."""

    norm: BatchStatNorm
    notes: _Notes = eqx.field(static=True)
    index: int = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        return jnp.moveaxis(self.channels_last(jnp.moveaxis(x, 1, -1)), -1, 1)

    def channels_last(self, x: Array) -> Array:
        statistics = Statistics(*self.norm.moments(x))
        self.notes.write(self.index, statistics)
        return _with_statistics(self.norm, statistics).channels_last(x)


def freeze_statistics(model: Any, x: Any) -> Any:
    """A copy of the model in which every `BatchStatNorm` keeps the statistics of batch `x`.

    Frozen on a support set it makes the *inductive* policy (a query's score no longer depends on the other
    queries); frozen on training images it stands for *running* statistics, without any state.

    **Arguments:**

    - `model`: any module called with a batch. It is run once on `x`; nothing is changed.
    - `x`: the batch, `[n, *in]`.

    **Returns:** the same model with frozen statistics. They are leaves, so gradients flow into them.

    **Raises:** `ValueError` when the model has no `BatchStatNorm`, never calls one, calls one more than
    once, or calls it inside a `jax.lax.scan`, `jax.checkpoint` or `jax.jit` of its own, out of which
    nothing can be recorded.

    >>> import jax.numpy as jnp, metakit as mk
    >>> norm = mk.nn.freeze_statistics(mk.nn.BatchStatNorm(1), jnp.array([[1.0], [3.0]]))
    >>> norm(jnp.array([[2.0]])).tolist()
    [[0.0]]
    """
    norms = [node for node in jax.tree.leaves(model, is_leaf=_is_norm) if _is_norm(node)]
    if not norms:
        raise ValueError(
            "freeze_statistics found no BatchStatNorm in the model, so there are no batch statistics to "
            "freeze. Use norm_policy='transductive' (it changes nothing for this model), or "
            "mk.nn.BatchStatNorm layers."
        )
    notes = _Notes(len(norms))
    indices = iter(range(len(norms)))

    def record(node: Any) -> Any:
        if not _is_norm(node):
            return node
        return _Recorder(_with_statistics(node, None), notes, next(indices))  # not those it may hold already

    jax.tree.map(record, model, is_leaf=_is_norm)(x)
    missed = [i for i, statistics in enumerate(notes.found) if statistics is None]
    if missed:
        raise ValueError(
            f"the model never called its BatchStatNorm number {missed}, so it has no statistics to freeze."
        )
    kept = iter(notes.found)

    def freeze(node: Any) -> Any:
        return _with_statistics(node, next(kept)) if _is_norm(node) else node

    return jax.tree.map(freeze, model, is_leaf=_is_norm)
