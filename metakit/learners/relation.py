"""Relation Networks: a learned module says how much alike a query's feature map and a class's are.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `Relation`.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from metakit import losses, nn
from metakit._episode import Episode, Examples
from metakit._errors import require_option
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from ._embedding import NORM_POLICIES, EmbeddedSupport, embed_queries, embed_support, features
from ._labels import membership, nan_unless_classes, require_labels

_POOLS = ("sum", "mean")


@typed
def score_error(outputs: Float[Array, "n way"], targets: Int[Array, "n"], *, reduction: str) -> Float[Array, "..."]:
    r"""Squared error of relation scores: 1 for the query's class, 0 for the others.

    $$\ell_j = \frac{1}{N}\sum_{n=1}^{N} \bigl(\sigma(z_{jn}) - \mathbf{1}[y_j = n]\bigr)^2$$

    **Arguments:**

    - `outputs`: scores before the sigmoid, $z$, `[n, way]`.
    - `targets`: labels in `0..way-1`, `[n]` integers.
    - `reduction`: `"mean"` (the published one), `"sum"` or `"none"` over the `n` queries.

    **Returns:** a scalar, or `[n]` for `"none"`. A label outside the range gives NaN, and a gradient of NaN.

    **Raises:** `ValueError` for an unknown reduction; a type-check error for targets that are not integers.

    **Source:** Sung et al. 2018, equation 2, https://arxiv.org/abs/1711.06025. The paper writes a sum over all pairs;
    its code takes the mean, as here.

    >>> import jax.numpy as jnp
    >>> float(score_error(jnp.zeros((1, 4)), jnp.array([2]), reduction="mean"))
    0.25
    """
    members = membership(targets, outputs.shape[1])
    is_class = jnp.any(members, axis=1, keepdims=True)
    wanted = jnp.where(is_class, members.astype(outputs.dtype), jnp.full((), jnp.nan, outputs.dtype))
    return losses.squared_error(jax.nn.sigmoid(outputs), wanted, reduction=reduction)


class Relation(eqx.Module):
    r"""A Relation Network.

    $$c_n = \sum_{i:\,y_i=n} f_\theta(x_i), \qquad z_n(x) = g_\phi\bigl([\,c_n, f_\theta(x)\,]\bigr), \qquad
      r_n(x) = \sigma(z_n(x))$$

    **Arguments:**

    - `embed`: the embedding network $f_\theta$, which keeps space: `[n, *in] -> [n, c, h, w]`; any callable on a batch,
      `mk.nn.RelationEmbedding` as published.
    - `relation`: the relation module $g_\phi$, from class maps `[way, c, h, w]` and query maps `[query, c, h, w]` to
      scores `[query, way]` before the sigmoid; any callable, `mk.nn.RelationModule` as published, which concatenates
      them in depth.
    - `loss`: `loss(scores, labels, *, reduction)`; default `score_error`, the published squared error to 0 and 1.
      `mk.losses.cross_entropy` takes the scores as logits instead, which ties the classes together.
    - `pool`: how the maps of a class's examples become one, `"sum"` (default, the paper's) or `"mean"`, which does not
      grow with the shot, so that one learner serves several.
    - `norm_policy`: which batch a batch norm of `embed` takes its statistics from.
        - `"transductive"` (default, the released code's, in training and test): the support as one batch, the queries
          as another. The queries share information with each other.
        - `"joint"`: support and query in one batch. The queries share information here too.
        - `"inductive"`: statistics of the support set, frozen. A score depends on nothing but the support and its own
          query.

        A batch norm of `relation` takes its statistics from all pairs of a class and a query, except under
        `"inductive"`: there from all pairs of a class and a support example. Name the policy beside every accuracy you
        report.

    **Raises:** `ValueError` for an unknown `pool` or `norm_policy`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> embed_key, relation_key = jax.random.split(jax.random.key(0))
    >>> embed = mk.nn.RelationEmbedding(1, 28, width=8, key=embed_key)
    >>> learner = mk.relation.Relation(embed, mk.nn.RelationModule(8, embed.map_size, key=relation_key))
    >>> support = mk.Examples(jax.random.normal(jax.random.key(1), (4, 1, 28, 28)), jnp.array([0, 1, 0, 1]), way=2)
    >>> mk.relation.predict(mk.relation.adapt(learner, support), support.x).shape
    (4, 2)

    **Source:** Sung et al. 2018, *Learning to Compare: Relation Network for Few-Shot Learning*, equations 1 and 2,
    https://arxiv.org/abs/1711.06025. Published training: Adam at 1e-3, halved every 100,000 episodes, the gradient of
    each of the two networks clipped to norm 0.5; 5-way 1-shot with 19 queries of each class on Omniglot.
    """

    embed: Callable[..., Any] = eqx.field(converter=as_node)
    relation: Callable[..., Any] = eqx.field(converter=as_node)
    loss: losses.Loss = eqx.field(converter=as_node)
    pool: Literal["sum", "mean"] = eqx.field(static=True)
    norm_policy: Literal["joint", "transductive", "inductive"] = eqx.field(static=True)

    def __init__(
        self,
        embed: Callable[..., Any],
        relation: Callable[..., Any],
        *,
        loss: losses.Loss = score_error,
        pool: str = "sum",
        norm_policy: str = "transductive",
    ):
        require_option("pool", pool, _POOLS)
        require_option("norm_policy", norm_policy, NORM_POLICIES)
        self.embed = embed
        self.relation = relation
        self.loss = loss
        self.pool = pool  # pyright: ignore[reportAttributeAccessIssue]
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: its support set, embedded as far as the policy allows, and whose class is whose.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.ones((2, 1, 4, 4)), jnp.arange(2), way=2)
    >>> product = lambda classes, queries: queries[:, 0, 0, :1] @ classes[:, 0, 0, :1].T
    >>> learner = mk.relation.Relation(lambda x: x, product)
    >>> mk.relation.adapt(learner, support).membership.shape
    (2, 2)
    """

    learner: Relation
    support: EmbeddedSupport
    membership: Bool[Array, "n way"]


class _SupportAgainstItself(eqx.Module):
    """Both networks in one call on the support set, which is what freezes the statistics of both."""

    embed: Callable[..., Any]
    relation: Callable[..., Any]
    membership: Bool[Array, "n way"]
    pool: str = eqx.field(static=True)

    def __call__(self, x: Shaped[Array, "n *in"]) -> Array:
        maps = features(self.embed, x, "embed", True)
        return self.relation(_class_maps(maps, self.membership, self.pool), maps)


@typed
def adapt(learner: Relation, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: embed its support set.

    **Arguments:**

    - `learner`: a `Relation`.
    - `support`: labelled examples with `way`. A label outside `0..way-1` makes every prediction NaN;
      `mk.check_values` names it.
    - `key`: accepted and not used; nothing here is random.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when `support.way` is missing, when `support.y` is not `[n]` integers, when `embed` does
    not return `[n, c, h, w]`, or for `norm_policy="inductive"` without any `BatchStatNorm`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.ones((2, 1, 4, 4)), jnp.arange(2), way=2)
    >>> product = lambda classes, queries: queries[:, 0, 0, :1] @ classes[:, 0, 0, :1].T
    >>> learner = mk.relation.Relation(lambda x: x, product)
    >>> mk.relation.adapt(learner, support).membership.tolist()
    [[True, False], [False, True]]
    """
    del key
    members = membership(support.y, require_labels(support, "Relation"))
    policy = learner.norm_policy
    if policy == "inductive":
        both = _SupportAgainstItself(learner.embed, learner.relation, members, learner.pool)
        frozen = nn.freeze_statistics(both, support.x)
        learner = eqx.tree_at(lambda node: (node.embed, node.relation), learner, (frozen.embed, frozen.relation))
        policy = "transductive"  # nothing is left that could depend on the batch
    return Adapted(learner, embed_support(learner.embed, None, support.x, policy, maps=True), members)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    """Score queries against every class.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: accepted and not used.

    **Returns:** scores `[query, way]` before the sigmoid, to be used as logits; `jax.nn.sigmoid` of them are the
    published relation scores, in 0..1. Minus infinity for a class without support examples.

    **Raises:** `ValueError` when `x` and the support differ in the shape of an example, when `embed` does not return
    `[n, c, h, w]`, or when `relation` does not return `[query, way]`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.ones((2, 1, 4, 4)), jnp.arange(2), way=2)
    >>> product = lambda classes, queries: queries[:, 0, 0, :1] @ classes[:, 0, 0, :1].T
    >>> learner = mk.relation.Relation(lambda x: x, product)
    >>> mk.relation.predict(mk.relation.adapt(learner, support), 3 * support.x[:1]).tolist()
    [[3.0, 3.0]]
    """
    del key
    learner, members = adapted.learner, adapted.membership
    maps, queries = embed_queries(adapted.support, x)
    scores = learner.relation(_class_maps(maps, members, learner.pool), queries)
    expected = (x.shape[0], members.shape[1])
    if scores.shape != expected:
        raise ValueError(
            f"relation must give one score for every query and class, {list(expected)}, got {list(scores.shape)}. It "
            "is called with class maps [way, c, h, w] and query maps [query, c, h, w]."
        )
    present = jnp.any(members, axis=0)[None]
    scores = jnp.where(present, scores, jnp.full_like(scores, -jnp.inf))
    return nan_unless_classes(scores, members)


@typed
def meta_loss(learner: Relation, task: Episode, key: PRNGKey | None = None) -> Scalar:
    """Mean loss of the queries after adaptation to the support set.

    **Arguments:**

    - `learner`: a `Relation`.
    - `task`: an `Episode` of labelled examples with `way`.
    - `key`: accepted and not used.

    **Returns:** a scalar: by default the mean squared error of the relation scores, over queries and classes.

    **Raises:** what `adapt` and `predict` raise.

    >>> import jax.numpy as jnp, metakit as mk
    >>> examples = mk.Examples(jnp.zeros((2, 1, 4, 4)), jnp.arange(2), way=2)
    >>> product = lambda classes, queries: queries[:, 0, 0, :1] @ classes[:, 0, 0, :1].T
    >>> learner = mk.relation.Relation(lambda x: x, product)
    >>> float(mk.relation.meta_loss(learner, mk.Episode(examples, examples)))
    0.25
    """
    del key
    require_labels(task.query, "Relation", name="query")
    scores = predict(adapt(learner, task.support), task.query.x)
    return learner.loss(scores, task.query.y, reduction="mean")


def _class_maps(maps: Float[Array, "n c h w"], members: Bool[Array, "n way"], pool: str) -> Float[Array, "way c h w"]:
    """One feature map for each class, from those of its examples."""
    weights = members.astype(maps.dtype)
    rows = jnp.matmul(weights.T, maps.reshape(maps.shape[0], -1), precision=jax.lax.Precision.HIGHEST)
    if pool == "mean":
        counts = jnp.sum(weights, axis=0)
        rows = rows / jnp.maximum(counts, jnp.ones_like(counts))[:, None]
    return rows.reshape(members.shape[1], *maps.shape[1:])
