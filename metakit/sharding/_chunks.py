"""Many tasks on one device: all at once, a few at a time, or one after another."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit._compile import runs_alone

from ._mesh import num_tasks

Chunk: TypeAlias = int | Literal["auto"] | None


def choose_chunk(chunk: Chunk, count: int, batched: Any, platform: str) -> int:
    """How many of `count` tasks run at once on one device."""
    if chunk is None:
        return count
    if chunk == "auto":
        return 1 if runs_alone(_numbers_in_one_task(batched), platform) else count
    if isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f'chunk must be a positive number of tasks, "auto", or None for all at once; got {chunk!r}.')
    return min(chunk, count)


def _numbers_in_one_task(batched: Any) -> int:
    return sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(batched) if eqx.is_array(leaf))


def fold_chunks(function: Callable[[Any], tuple[Any, Any]], like: Any, batched: Any, chunk: int) -> tuple[Any, Any]:
    """Sum the first output of `function(some tasks)`, a tree like `like`, over chunks, and concatenate the
    second.

    `batched` holds arrays only. Where `chunk` does not divide the number of tasks, the rest is a smaller
    chunk of its own: padding would run tasks that do not exist, and their NaN could reach the sum through 0 *
    NaN.
    """
    count = num_tasks(batched)
    whole = count // chunk
    if whole == 1 and count == chunk:
        return function(batched)

    # One task at a time is scanned as it lies: behind another axis, of one, XLA copies all tasks to another layout.
    alone = chunk == 1
    split = batched
    if not alone:
        split = jax.tree.map(lambda leaf: leaf[: whole * chunk].reshape(whole, chunk, *leaf.shape[1:]), batched)

    def body(carry, some):
        addend, outputs = function(jax.tree.map(lambda leaf: leaf[None], some) if alone else some)
        return jax.tree.map(jnp.add, carry, addend), outputs

    total, stacked = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, like), split)
    outputs = jax.tree.map(lambda leaf: leaf.reshape(whole * chunk, *leaf.shape[2:]), stacked)
    if whole * chunk == count:
        return total, outputs

    addend, rest = function(jax.tree.map(lambda leaf: leaf[whole * chunk :], batched))
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, rest)
    return jax.tree.map(jnp.add, total, addend), joined


def each_task(function: Callable[..., Any], batched: Any, count: int) -> Any:
    """`function(*one)` for each of `count` tasks, vectorised.

    A single task is not mapped at all: under `vmap` its convolutions would carry a task axis of one and take
    the slower path.
    """
    if count == 1:
        one = function(*jax.tree.map(lambda leaf: leaf[0], batched))
        return jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, one)
    return eqx.filter_vmap(lambda args: function(*args))(batched)
