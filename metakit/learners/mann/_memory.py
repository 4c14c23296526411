"""The external memory: what is written where, and what is read."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit.learners._distances import cosine

# Every row starts at this, so that a cosine with it is defined.
BLANK = 1e-6


class State(eqx.Module):
    """What a MANN carries from one step of a sequence to the next; wiped before each sequence.

    - `memory`: `[slots, width]`.
    - `usage`: `[slots]`, how much each slot was read and written of late.
    - `read_weights`: `[heads, slots]`, where each head read in the last step.
    - `read`: `[heads * width]`, what they read.
    - `hidden`, `cell`: `[hidden]`, the controller's.

    >>> import jax, metakit as mk
    >>> learner = mk.mann.MANN(4, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> learner.start().memory.shape
    (5, 2)
    """

    memory: Float[Array, "slots width"]
    usage: Float[Array, " slots"]
    read_weights: Float[Array, "heads slots"]
    read: Float[Array, " heads_times_width"]
    hidden: Float[Array, " hidden"]
    cell: Float[Array, " hidden"]


def blank(heads: int, slots: int, width: int, hidden: int, dtype: jnp.dtype) -> State:
    """The state before the first step."""
    first = jax.nn.one_hot(0, slots, dtype=dtype)
    return State(
        memory=jnp.full((slots, width), BLANK, dtype),
        usage=first,
        read_weights=jnp.broadcast_to(first[None], (heads, slots)),
        read=jnp.zeros((heads * width,), dtype),
        hidden=jnp.zeros((hidden,), dtype),
        cell=jnp.zeros((hidden,), dtype),
    )


def access(
    state: State,
    keys: Float[Array, "heads width"],
    additions: Float[Array, "heads width"],
    gates: Float[Array, " heads"],
    decay: Float[Array, ""],
) -> State:
    """Write to the least used slots or to those that were just read, then read."""
    heads, slots = state.read_weights.shape
    # Which slots is a choice, without a derivative; among equally used ones the lowest. One for each head.
    least_used = jax.lax.top_k(-state.usage, heads)[1]
    fresh = jax.nn.one_hot(least_used, slots, dtype=state.usage.dtype)
    write_weights = gates[:, None] * state.read_weights + (1 - gates)[:, None] * fresh

    erased = jnp.arange(slots, dtype=least_used.dtype) == least_used[0]
    memory = jnp.where(erased[:, None], jnp.zeros_like(state.memory), state.memory)
    memory = memory + write_weights.T @ additions

    read_weights = jax.nn.softmax(cosine(keys, memory), axis=1)
    read = (read_weights @ memory).reshape(-1)
    usage = decay * state.usage + jnp.sum(read_weights, axis=0) + jnp.sum(write_weights, axis=0)
    return State(memory, usage, read_weights, read, state.hidden, state.cell)
