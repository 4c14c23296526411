"""SNAIL's three functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from metakit import nn
from metakit._episode import Episode, Examples
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.learners._embedding import EmbeddedSupport, embed_queries, embed_support
from metakit.learners._labels import membership, nan_unless_classes, require_labels

from ._learner import SNAIL


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: the cache of having read its labelled tokens.

    Under the joint norm policy `cache` is `None`: the tokens wait for the queries that they are normalised
    with.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> trunk = mk.nn.CausalSequence([mk.nn.CausalAttention(4, 4, 2, key=jax.random.key(0))], length=3)
    >>> learner = mk.snail.SNAIL(lambda x: x, trunk, mk.nn.Linear(6, 2, key=jax.random.key(1)))
    >>> mk.snail.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2)).cache is None
    True
    """

    learner: SNAIL
    support: EmbeddedSupport
    membership: Bool[Array, "n way"]
    cache: nn.SequenceCache | None


@typed
def adapt(learner: SNAIL, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: read its labelled support set, in the order given.

    **Arguments:**

    - `learner`: a `SNAIL`.
    - `support`: labelled examples with `way`; shots may differ between classes, and be fewer than the trunk
      has room for. A label outside `0..way-1` makes every prediction NaN; `mk.check_values` names it.
    - `key`: accepted and not used; only `meta_loss` is random, with `random_shot`.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when `support.way` is missing or not the head's, when `support.y` is not `[n]`
    integers, when the support set and a query are more tokens than the trunk was built for, or when `embed`
    does not return `[n, d]` with the $d$ that the trunk takes.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> trunk = mk.nn.CausalSequence([mk.nn.CausalAttention(4, 4, 2, key=jax.random.key(0))], length=3)
    >>> learner = mk.snail.SNAIL(lambda x: x, trunk, mk.nn.Linear(6, 2, key=jax.random.key(1)))
    >>> mk.snail.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2)).membership.tolist()
    [[True, False], [False, True]]
    """
    del key
    _check(learner, support)
    members = membership(support.y, support.way or 0)
    embedded = embed_support(learner.embed, None, support.x, learner.norm_policy)
    cache = None if embedded.features is None else _read(learner, embedded.features, members)
    return Adapted(learner, embedded, members, cache)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    """Score queries, each as the token after the support set.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: accepted and not used.

    **Returns:** logits `[query, way]`.

    **Raises:** `ValueError` when `x` and the support differ in the shape of an example, or when `embed` does
    not return `[n, d]` with the $d$ that the trunk takes.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> trunk = mk.nn.CausalSequence([mk.nn.CausalAttention(4, 4, 2, key=jax.random.key(0))], length=3)
    >>> learner = mk.snail.SNAIL(lambda x: x, trunk, mk.nn.Linear(6, 2, key=jax.random.key(1)))
    >>> adapted = mk.snail.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2))
    >>> jax.jit(mk.snail.predict)(adapted, jnp.ones((3, 2))).shape
    (3, 2)
    """
    del key
    return _score(adapted, x, None)


@typed
def meta_loss(learner: SNAIL, task: Episode, key: PRNGKey | None = None) -> Scalar:
    """Mean loss of the queries, each as the last token of its sequence.

    **Arguments:**

    - `learner`: a `SNAIL`.
    - `task`: an `Episode` of labelled examples with `way`.
    - `key`: for a learner with `random_shot`, of the shot and the order; not used otherwise.

    **Returns:** a scalar, in nats per query for the default loss.

    **Raises:** `ValueError` for a learner with `random_shot` and no key, and what `adapt` and `predict` raise.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> trunk = mk.nn.CausalSequence([mk.nn.CausalAttention(4, 4, 2, key=jax.random.key(0))], length=3)
    >>> learner = mk.snail.SNAIL(lambda x: x, trunk, mk.nn.Linear(6, 2, key=jax.random.key(1)))
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> jax.jit(mk.snail.meta_loss)(learner, mk.Episode(examples, examples)).shape
    ()
    """
    require_labels(task.query, "SNAIL", name="query")
    support, count = task.support, None
    if learner.random_shot:
        if key is None:
            raise ValueError(
                "key is missing: this SNAIL draws a shot for each task (random_shot=True). Call "
                "meta_loss(learner, task, key)."
            )
        _check(learner, support)
        support, count = _some_shots_first(support, key)
    logits = _score(adapt(learner, support), task.query.x, count)
    return learner.loss(logits, task.query.y, reduction="mean")


def _check(learner: SNAIL, support: Examples) -> None:
    way, n = require_labels(support, "SNAIL"), support.x.shape[0]
    classes, length = learner.head.weight.shape[1], learner.trunk.length
    if way != classes:
        raise ValueError(
            f"support.way must be {classes}, the classes that this SNAIL was built for, got {way}. Its labels are "
            "inputs of the network, so another number of classes needs a network of its own."
        )
    if n + 1 > length:
        raise ValueError(
            f"support must hold at most {length - 1} examples, since this SNAIL reads sequences of {length} tokens "
            f"and a query is one of them; got {n}. Build it with a larger shot."
        )


def _tokens(learner: SNAIL, features: Float[Array, "n d"], labels: Bool[Array, "n way"]) -> Float[Array, "n in"]:
    wanted = learner.trunk.in_size - labels.shape[1]
    if features.shape[1] != wanted:
        raise ValueError(
            f"embed must return {wanted} features, since the trunk takes tokens of {learner.trunk.in_size} and "
            f"{labels.shape[1]} of them are the label; got {features.shape[1]}. Build the learner with "
            f"features={features.shape[1]}."
        )
    return jnp.concatenate([features, labels.astype(features.dtype)], axis=1)


def _read(learner: SNAIL, features: Float[Array, "n d"], members: Bool[Array, "n way"]) -> nn.SequenceCache:
    return learner.trunk.read(_tokens(learner, features, members))[0]


def _score(adapted: Adapted, x: Shaped[Array, "query *in"], count: Int[Array, ""] | None) -> Float[Array, "query way"]:
    """Logits of the queries after the first `count` examples; `None` means all."""
    learner, members = adapted.learner, adapted.membership
    features, queries = embed_queries(adapted.support, x)
    cache = _read(learner, features, members) if adapted.cache is None else adapted.cache
    if count is not None:
        cache = nn.rewind(cache, count)
    unlabelled = jnp.zeros((queries.shape[0], members.shape[1]), bool)
    ask = eqx.filter_vmap(lambda trunk, cache, token: trunk.step(cache, token)[1], in_axes=(None, None, 0))
    outputs = ask(learner.trunk, cache, _tokens(learner, queries, unlabelled))
    return nan_unless_classes(learner.head(outputs), members)


def _some_shots_first(support: Examples, key: PRNGKey) -> tuple[Examples, Int[Array, ""]]:
    """The support set with a random shot of each class first, in random order; and how many those are.

    Nothing later changes what was read before it, so the rest may stay where it is: the cache is rewound.
    """
    shot_key, order_key = jax.random.split(key)
    n, way = support.x.shape[0], support.way or 1
    shot = jax.random.randint(shot_key, (), 1, max(n // way, 1) + 1)
    order = jax.random.permutation(order_key, n)
    members = membership(support.y[order], way).astype(jnp.int32)
    earlier = jnp.sum((jnp.cumsum(members, axis=0) - members) * members, axis=1)  # of the same class
    chosen = earlier < shot
    # A stable sort of booleans keeps the random order on either side.
    order = order[jnp.argsort(~chosen)]
    return Examples(support.x[order], support.y[order], support.way), jnp.sum(chosen, dtype=jnp.int32)
