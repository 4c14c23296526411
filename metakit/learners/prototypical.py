"""Prototypical Networks: a class is the mean of its support embeddings, a query belongs to the nearest.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `Prototypical`.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from metakit import losses
from metakit._episode import Episode, Examples
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from . import _distances
from ._embedding import NORM_POLICIES, EmbeddedSupport, embed_queries, embed_support
from ._labels import membership, nan_unless_classes, require_labels
from ._options import scalar
from ._prototypes import prototypes as prototypes

_DISTANCES = ("squared_euclidean", "cosine")


class Prototypical(eqx.Module):
    r"""A Prototypical Network.

    $$c_n = \frac{1}{|S_n|}\sum_{i:\,y_i=n} f_\theta(x_i), \qquad
      z_n(x) = -s\,\lVert f_\theta(x) - c_n\rVert^2, \qquad p(n \mid x) = \operatorname{softmax}_n z(x)$$

    **Arguments:**

    - `embed`: the embedding network $f_\theta$, `[n, *in] -> [n, d]`; any callable on a batch.
    - `distance`: `"squared_euclidean"` (the default and the paper's best) or `"cosine"`, for which
      $z_n = s\cos(f_\theta(x), c_n)$.
    - `scale`: $s$, a number or a `Hyperparameter`; default fixed at 1, the paper's. With the cosine, logits
      of size 1 give an almost flat softmax: there 10 is a sane value, `mk.learned(10.0)` a common one.
    - `loss`: `loss(logits, labels, *, reduction)`; default `mk.losses.cross_entropy`.
    - `norm_policy`: which batch a batch norm of `embed` takes its statistics from.
        - `"joint"` (default, how the published networks were trained): support and query in one batch. This
          is *transductive*: the queries share information with each other, and a score depends on which
          others are asked beside it.
        - `"transductive"`: the support as one batch, the queries as another. The queries share information
          here too.
        - `"inductive"`: statistics of the support set, frozen. A score depends on nothing but the support and
          its own query.

        Published *test* numbers use running averages: `mk.nn.freeze_statistics(embed, training_images)` gives
        such a network, and no policy changes it then. Name the policy beside every accuracy you report. The
        joint policy embeds the support again for each `predict`; where `embed` has no batch norm,
        `"transductive"` gives the same numbers and embeds it once.

    **Raises:** `ValueError` for an unknown `distance` or `norm_policy`, or a `scale` that is not one number.

    >>> import jax.numpy as jnp
    >>> support = Examples(jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1]), way=2)
    >>> adapted = adapt(Prototypical(lambda x: x), support)
    >>> predict(adapted, jnp.array([[3.0]])).round().tolist()
    [[-4.0, -36.0]]

    **Source:** Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017, equations 1 and
    2, https://arxiv.org/abs/1703.05175. No division by `d`, no square root, no temperature, as there; `scale`
    is ours. Train with more classes than you test with (60 against 5 on Omniglot), and with the shot that you
    test with.
    """

    embed: Callable[..., Any] = eqx.field(converter=as_node)
    scale: Hyperparameter
    loss: losses.Loss = eqx.field(converter=as_node)
    distance: Literal["squared_euclidean", "cosine"] = eqx.field(static=True)
    norm_policy: Literal["joint", "transductive", "inductive"] = eqx.field(static=True)

    def __init__(
        self,
        embed: Callable[..., Any],
        *,
        distance: str = "squared_euclidean",
        scale: Hyperparameter | ArrayLike = 1.0,
        loss: losses.Loss = losses.cross_entropy,
        norm_policy: str = "joint",
    ):
        require_option("distance", distance, _DISTANCES)
        require_option("norm_policy", norm_policy, NORM_POLICIES)
        self.embed = embed
        self.scale = scalar("scale", scale)
        self.loss = loss
        self.distance = distance  # pyright: ignore[reportAttributeAccessIssue]
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: its support set, embedded as far as the policy allows, and whose class
    is whose.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.prototypical.adapt(mk.prototypical.Prototypical(lambda x: x), support).membership.shape
    (2, 2)
    """

    learner: Prototypical
    support: EmbeddedSupport
    membership: Bool[Array, "n way"]


@typed
def adapt(learner: Prototypical, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: embed its support set.

    **Arguments:**

    - `learner`: a `Prototypical`.
    - `support`: labelled examples with `way`; shots may differ between classes. A label outside `0..way-1` makes
      every prediction NaN; `mk.check_values` names it.
    - `key`: accepted and not used; nothing here is random.

    **Returns:** an `Adapted` for `predict`. Under `norm_policy="joint"` the prototypes wait for the queries.

    **Raises:** `ValueError` when `support.way` is missing, when `support.y` is not `[n]` integers, or when
    `embed` does not return `[n, d]`.

    >>> import jax.numpy as jnp
    >>> support = Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> adapt(Prototypical(lambda x: x), support).membership.tolist()
    [[True, False], [False, True]]
    """
    del key
    way = require_labels(support, "Prototypical")
    embedded = embed_support(learner.embed, None, support.x, learner.norm_policy)
    return Adapted(learner, embedded, membership(support.y, way))


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    """Score queries against the prototypes.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: accepted and not used.

    **Returns:** logits `[query, way]`; minus infinity, so probability zero, for a class without support
    examples.

    **Raises:** `ValueError` when `x` and the support differ in the shape of an example, or when `embed` does
    not return `[n, d]`.

    >>> import jax.numpy as jnp
    >>> support = Examples(jnp.array([[4.0], [1.0]]), jnp.arange(2), way=3)
    >>> predict(adapt(Prototypical(lambda x: x), support), jnp.zeros((1, 1))).round().tolist()
    [[-16.0, -1.0, -inf]]
    """
    del key
    features, queries = embed_queries(adapted.support, x)
    means, present = prototypes(features, adapted.membership)
    if adapted.learner.distance == "cosine":
        scores = _distances.cosine(queries, means)
    else:
        scores = -_distances.squared_euclidean(queries, means)
    logits = adapted.learner.scale.value.astype(scores.dtype) * scores
    logits = jnp.where(present[None, :], logits, jnp.full_like(logits, -jnp.inf))
    return nan_unless_classes(logits, adapted.membership)


@typed
def meta_loss(learner: Prototypical, task: Episode, key: PRNGKey | None = None) -> Scalar:
    """Mean loss of the queries after adaptation to the support set.

    **Arguments:**

    - `learner`: a `Prototypical`.
    - `task`: an `Episode` of labelled examples with `way`.
    - `key`: accepted and not used.

    **Returns:** a scalar, in nats per query for the default loss; infinite where a query's class has no
    support.

    **Raises:** what `adapt` and `predict` raise.

    >>> import jax.numpy as jnp, metakit as mk
    >>> examples = mk.Examples(jnp.zeros((2, 1)), jnp.arange(2), way=2)
    >>> round(float(meta_loss(Prototypical(lambda x: x), mk.Episode(examples, examples))), 4)
    0.6931
    """
    del key
    require_labels(task.query, "Prototypical", name="query")
    logits = predict(adapt(learner, task.support), task.query.x)
    return learner.loss(logits, task.query.y, reduction="mean")
