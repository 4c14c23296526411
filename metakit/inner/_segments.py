"""A scan whose backward pass recomputes it in pieces."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._adjoint import Carry, step_indices


def scan_in_segments(step: Callable[..., Any], carry: Carry, num_steps: int) -> tuple[Carry, Any]:
    """`jax.lax.scan` over the step indices that keeps the carry at the start of about sqrt(num_steps) segments."""

    def segment(carry: Carry, indices: Any) -> Any:
        return jax.lax.scan(step, carry, indices)

    length = max(1, math.isqrt(num_steps))
    segments, left_over = divmod(num_steps, length)
    indices = step_indices(num_steps)
    whole = indices[: segments * length].reshape(segments, length)
    # Inside a scan nothing can be merged across steps, so the barriers against it would only cost time.
    carry, outputs = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, whole)
    outputs = jax.tree.map(lambda leaf: leaf.reshape(segments * length, *leaf.shape[2:]), outputs)
    if left_over:
        carry, last = segment(carry, indices[segments * length :])
        outputs = jax.tree.map(lambda leaf, end: jnp.concatenate([leaf, end]), outputs, last)
    return carry, outputs
