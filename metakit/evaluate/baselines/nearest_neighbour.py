"""One nearest neighbour on the raw inputs.

An algorithm without a learner: pass `None` for it. On images this is nearest neighbour on pixels, the weakest
honest baseline of few-shot classification.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from metakit._episode import Episode, Examples, require_one_input, require_unmasked
from metakit._typecheck import typed
from metakit._types import Scalar
from metakit.losses import cross_entropy


@typed
def adapt(learner: Any, support: Examples, key: Any = None) -> Examples:
    """Remember the support set.

    **Arguments:** `learner` and `key` are not used; `support`, with integer labels and a `way`.

    **Returns:** `support`.

    **Raises:** `ValueError` where the support set has no `way`: nearest neighbour classifies.

    >>> import jax.numpy as jnp, metakit as mk
    >>> adapt(None, mk.Examples(jnp.ones((2, 3)), jnp.array([0, 1]), way=2)).x.shape
    (2, 3)
    """
    del learner, key
    require_one_input(support, "nearest_neighbour", "support")
    if support.way is None:
        raise ValueError("nearest_neighbour needs class labels, got a support set whose way is None (real targets).")
    return support


@typed
def predict(adapted: Examples, x: Shaped[Array, "n *in"], key: Any = None) -> Float[Array, "n way"]:
    r"""Classify by the nearest support example.

    $$z_{ic} = -\min_{j:\, y_j = c} \lVert x_i - x_j \rVert^2$$

    **Arguments:** `adapted`, from `adapt`; `x`, inputs `[n, *in]`; `key` is not used.

    **Returns:** logits `[n, way]`; minus infinity for a class without support; NaN where a label is no class.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.array([[0.0], [3.0]]), jnp.array([0, 1]), way=2)
    >>> predict(adapt(None, support), jnp.array([[1.0]])).tolist()
    [[-1.0, -4.0]]
    """
    del key
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
    known = adapted.x.astype(dtype).reshape(adapted.x.shape[0], -1)
    # The differences themselves, not the expanded square: an identical image is at distance exactly 0, and
    # XLA sums without storing the [n, support, pixels] table.
    squares = jax.vmap(lambda one: jnp.sum(jnp.square(known - one[None]), axis=1))(x.astype(dtype).reshape(len(x), -1))
    assert adapted.way is not None
    member = adapted.y[:, None] == jnp.arange(adapted.way, dtype=adapted.y.dtype)[None]
    far = jnp.full((), jnp.inf, dtype)
    logits = -jnp.min(jnp.where(member[None], squares[:, :, None], far), axis=1)
    # A label that is no class: compiled code cannot raise, so the score shows it.
    return jnp.where(jnp.all(jnp.any(member, axis=1)), logits, jnp.full_like(logits, jnp.nan))


@typed
def meta_loss(learner: Any, task: Episode, key: Any = None) -> Scalar:
    """Mean cross-entropy of the query set; a score only, since nothing here can be trained.

    **Arguments:** `learner` and `key` are not used; `task`, an episode with class labels.

    **Returns:** nats per query.

    >>> import jax.numpy as jnp, metakit as mk
    >>> examples = mk.Examples(jnp.array([[0.0], [9.0]]), jnp.array([0, 1]), way=2)
    >>> float(meta_loss(None, mk.Episode(examples, examples))) < 1e-9
    True
    """
    require_unmasked(task.query, "nearest_neighbour", "query")
    logits = predict(adapt(learner, task.support, key), task.query.x, key)
    return cross_entropy(logits, task.query.y, reduction="mean")
