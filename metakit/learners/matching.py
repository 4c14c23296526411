"""Matching Networks: a query's prediction is an attention-weighted sum of the support's targets.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `Matching`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from metakit import losses
from metakit._episode import Episode, Examples, require_one_input, require_unmasked
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from . import _distances
from ._context import FullContext as FullContext
from ._embedding import NORM_POLICIES, EmbeddedSupport, embed_queries, embed_support
from ._labels import classifies, membership, nan_unless_classes, require_labels
from ._options import scalar

_SIMILARITIES = ("cosine", "squared_euclidean")


class Matching(eqx.Module):
    r"""A Matching Network.

    $$a_i(\hat x) = \operatorname{softmax}_i\, s \cos\bigl(f(\hat x, S), g(x_i, S)\bigr), \qquad
      \hat y = \sum_{i=1}^{n} a_i(\hat x)\, y_i$$

    The attention is over the *examples* of the support set, and its weights add up their encoded targets.
    With integer labels and a `way`, $y_i$ is the label's one-hot row and $\hat y$ a distribution over
    classes; with real targets it is their weighted mean.

    **Arguments:**

    - `embed`: the embedding network $g'$ of the support, and of the queries where `embed_query` is not given;
      `[n, *in] -> [n, d]`, any callable on a batch.
    - `similarity`: `"cosine"` (default, the paper's), or `"squared_euclidean"` for minus the squared distance
      in place of the cosine, which often trains better.
    - `scale`: $s$, a number or a `Hyperparameter`; default fixed at 1, the paper's. That softmax is nearly
      flat (at 5-way 1-shot no class can get a probability above 0.65), so in practice take
      `mk.learned(10.0)`.
    - `context`: a `FullContext` for full context embeddings; default `None`, where $f = f'$ and $g = g'$.
    - `embed_query`: a network $f'$ of its own for the queries; default `None`, where $f' = g'$, as in every
      published result.
    - `loss`: `loss(outputs, targets, *, reduction)`; default `None`: `mk.losses.cross_entropy` for labels,
      `mk.losses.squared_error` for real targets.
    - `norm_policy`: which batch a batch norm takes its statistics from.
        - `"joint"` (default): support and query in one batch. This is *transductive*: the queries share
          information with each other, and a prediction depends on which others are asked beside it.
        - `"transductive"`: the support as one batch, the queries as another. The queries share information
          here too.
        - `"inductive"`: statistics of the support set, frozen. A prediction depends on nothing but the
          support and its own query.

        Name the policy beside every accuracy you report. The joint policy embeds the support again for each
        `predict`; where there is no batch norm, `"transductive"` gives the same numbers and embeds it once.

    **Raises:** `ValueError` for an unknown `similarity` or `norm_policy`, or a `scale` of several numbers.

    >>> import jax.numpy as jnp
    >>> support = Examples(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1.0, 3.0]))
    >>> adapted = adapt(Matching(lambda x: x), support)
    >>> predict(adapted, jnp.array([[1.0, 1.0]])).round().tolist()
    [2.0]

    **Source:** Vinyals et al. 2016, *Matching Networks for One Shot Learning*, equations 1 and 2,
    https://arxiv.org/abs/1606.04080. Implementations that add up the cosines of a class and take a softmax
    over classes compute something else for more than one shot; this is the paper's rule.
    """

    gives_log_probabilities: ClassVar[bool] = True

    embed: Callable[..., Any] = eqx.field(converter=as_node)
    embed_query: Callable[..., Any] | None = eqx.field(converter=as_node)
    context: FullContext | None
    scale: Hyperparameter
    loss: losses.Loss | None = eqx.field(converter=as_node)
    similarity: Literal["cosine", "squared_euclidean"] = eqx.field(static=True)
    norm_policy: Literal["joint", "transductive", "inductive"] = eqx.field(static=True)

    def __init__(
        self,
        embed: Callable[..., Any],
        *,
        similarity: str = "cosine",
        scale: Hyperparameter | ArrayLike = 1.0,
        context: FullContext | None = None,
        embed_query: Callable[..., Any] | None = None,
        loss: losses.Loss | None = None,
        norm_policy: str = "joint",
    ):
        require_option("similarity", similarity, _SIMILARITIES)
        require_option("norm_policy", norm_policy, NORM_POLICIES)
        self.embed = embed
        self.embed_query = embed_query
        self.context = context
        self.scale = scalar("scale", scale)
        self.loss = loss
        self.similarity = similarity  # pyright: ignore[reportAttributeAccessIssue]
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: its support set, as far as the policy lets it be embedded, and its
    targets.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.matching.adapt(mk.matching.Matching(lambda x: x), support).targets.shape
    (2, 2)
    """

    learner: Matching
    support: EmbeddedSupport
    targets: Shaped[Array, "n *out"]
    classifies: bool = eqx.field(static=True)


@typed
def adapt(learner: Matching, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: embed its support set and encode its targets.

    **Arguments:**

    - `learner`: a `Matching`.
    - `support`: integer labels with `way` to classify, or real targets of any shape without it to regress. A
      label outside `0..way-1` makes every prediction NaN; `mk.check_values` names it.
    - `key`: accepted and not used; nothing here is random.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when integer targets come without a `way` or not as `[n]`, or when `embed` does
    not return `[n, d]`.

    >>> import jax.numpy as jnp
    >>> adapt(Matching(lambda x: x), Examples(jnp.eye(2), jnp.arange(2), way=2)).targets.tolist()
    [[True, False], [False, True]]
    """
    del key
    require_one_input(support, "Matching", "support")
    labelled = classifies(support)
    embedded = embed_support(learner.embed, learner.embed_query, support.x, learner.norm_policy)
    targets = membership(support.y, require_labels(support, "Matching")) if labelled else support.y
    return Adapted(learner, embedded, targets, labelled)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query *out"]:
    """Predict queries from the support's targets.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: accepted and not used.

    **Returns:** log-probabilities `[query, way]` (they count as logits), minus infinity for a class without
    support examples; or `[query, *out]` real values within the range of the support's.

    **Raises:** `ValueError` when `x` and the support differ in the shape of an example, when an embedding is
    not `[n, d]`, or when two of `embed`, `embed_query` and `context` disagree about `d`.

    >>> import jax.numpy as jnp
    >>> support = Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> adapted = adapt(Matching(lambda x: x, scale=100.0), support)
    >>> jnp.exp(predict(adapted, jnp.array([[0.0, 2.0]]))).round().tolist()
    [[0.0, 1.0]]
    """
    del key
    scores = _scores(adapted, x)
    if adapted.classifies:
        return nan_unless_classes(_log_probabilities(scores, adapted.targets), adapted.targets)
    targets = adapted.targets.reshape(adapted.targets.shape[0], -1)
    attention = jax.nn.softmax(scores, axis=1).astype(targets.dtype)
    means = jnp.matmul(attention, targets, precision=jax.lax.Precision.HIGHEST)
    return means.reshape(x.shape[0], *adapted.targets.shape[1:])


@typed
def meta_loss(learner: Matching, task: Episode, key: PRNGKey | None = None) -> Scalar:
    """Mean loss of the queries after adaptation to the support set.

    **Arguments:**

    - `learner`: a `Matching`.
    - `task`: an `Episode`, of labels with `way` or of real targets.
    - `key`: accepted and not used.

    **Returns:** a scalar: with the default losses, nats per query for labels (infinite where a query's class
    has no support), a mean squared error for real targets.

    **Raises:** what `adapt` and `predict` raise.

    >>> import jax.numpy as jnp, metakit as mk
    >>> examples = mk.Examples(jnp.zeros((2, 1)), jnp.arange(2), way=2)
    >>> round(float(meta_loss(Matching(lambda x: x), mk.Episode(examples, examples))), 4)
    0.6931
    """
    del key
    require_unmasked(task.query, "Matching", "query")
    loss = learner.loss
    if loss is None:
        loss = losses.cross_entropy if classifies(task.query) else losses.squared_error
    outputs = predict(adapt(learner, task.support), task.query.x)
    return loss(outputs, task.query.y, reduction="mean")


def _scores(adapted: Adapted, x: Shaped[Array, "query *in"]) -> Float[Array, "query n"]:
    """The logits of the attention."""
    learner = adapted.learner
    support, queries = embed_queries(adapted.support, x)
    if learner.context is not None:
        support, queries = learner.context(support, queries)
    if learner.similarity == "cosine":
        similarity = _distances.cosine(queries, support)
    else:
        similarity = -_distances.squared_euclidean(queries, support)
    return learner.scale.value.astype(similarity.dtype) * similarity


def _log_probabilities(scores: Float[Array, "query n"], members: Bool[Array, "n way"]) -> Float[Array, "query way"]:
    r"""$\log\sum_{i:\,y_i=c} a_i$, from the attention's logits.

    Adding up the attention first and taking the logarithm of that gives minus infinity, and NaN gradients,
    once the scores lie further apart than the exponential reaches. So each class has its own largest score
    taken out.
    """
    present = jnp.any(members, axis=0)
    lowest = jnp.full((), -jnp.inf, scores.dtype)
    largest = jnp.max(jnp.where(members[None], scores[:, :, None], lowest), axis=1)
    largest = jax.lax.stop_gradient(jnp.where(present[None], largest, jnp.zeros_like(largest)))
    terms = jnp.exp(scores - jnp.take(largest, jnp.argmax(members, axis=1), axis=1))
    sums = jnp.matmul(terms, members.astype(scores.dtype), precision=jax.lax.Precision.HIGHEST)
    logits = jnp.log(jnp.where(present[None], sums, jnp.ones_like(sums))) + largest
    return jax.nn.log_softmax(jnp.where(present[None], logits, lowest), axis=1)
