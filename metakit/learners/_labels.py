"""Class labels of a support set."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metakit._episode import Examples, require_one_input, require_unmasked


def require_labels(examples: Examples, learner: str, name: str = "support") -> int:
    """The number of classes, or a `ValueError` that says what the examples lack."""
    require_unmasked(examples, learner, name)
    require_one_input(examples, learner, name)
    if not jnp.issubdtype(examples.y.dtype, jnp.integer):
        raise ValueError(
            f"{name}.y must hold integer class labels for {learner}, got dtype {examples.y.dtype}. "
            "Build it as Examples(x, labels, way=...)."
        )
    if examples.way is None:
        raise ValueError(
            f"{name}.way is missing: {learner} must know how many classes the labels count from, and "
            "compiled code cannot read it off their values. Build it as Examples(x, labels, way=...)."
        )
    if examples.y.ndim != 1:
        raise ValueError(
            f"{name}.y must hold one label per example, shape [n], got {list(examples.y.shape)}. "
            "A batch of tasks goes through eqx.filter_vmap; one-hot rows through y.argmax(-1)."
        )
    return examples.way


def membership(labels: Int[Array, " n"], way: int) -> Bool[Array, "n way"]:
    """Whether example i belongs to class c; no class for a label outside `0..way-1`."""
    return labels[:, None] == jnp.arange(way, dtype=labels.dtype)[None, :]


def nan_unless_classes(outputs: Float[Array, "query way"], members: Bool[Array, "n way"]) -> Float[Array, "query way"]:
    """The outputs, or NaN where a support label was no class: compiled code cannot raise, but training then stops."""
    belong = jnp.all(jnp.any(members, axis=1))
    return jnp.where(belong, outputs, jnp.full_like(outputs, jnp.nan))


def classifies(examples: Examples) -> bool:
    """Whether the targets are labels. Integers without a way are an oversight, not real targets: they go on to the
    error that says so."""
    return examples.way is not None or not jnp.issubdtype(examples.y.dtype, jnp.floating)
