"""VERSA: a network reads a distribution over linear classifiers off the support set, and predictions average over it.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `Versa`. Predictions draw samples, so the
last two need a key.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from metakit import losses
from metakit._episode import Episode, Examples
from metakit._errors import require_option
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.random import require_key

from ._embedding import NORM_POLICIES, EmbeddedSupport, embed_queries, embed_support
from ._head_posterior import (
    Amortiser as Amortiser,
    HeadPosterior as HeadPosterior,
    logit_moments as logit_moments,
)
from ._labels import membership, nan_unless_classes, require_labels
from ._prototypes import prototypes


class Versa(eqx.Module):
    r"""A VERSA classifier.

    $$\nu_n = \frac{1}{|S_n|}\sum_{i:\,y_i=n} f_\theta(x_i), \qquad
      q(w_n, b_n \mid S) = N\bigl(\mu_\phi(\nu_n), \operatorname{diag}\sigma^2_\phi(\nu_n)\bigr), \qquad
      p(n \mid x) \approx \frac{1}{L}\sum_{l=1}^{L} \operatorname{softmax}_n\bigl(w^{(l)\top} f_\theta(x) +
      b^{(l)}\bigr)$$

    The logits are drawn instead of the weights (local reparametrisation): they are Gaussian with the mean and variance
    of `logit_moments`, independently for each query, class and sample.

    **Arguments:**

    - `embed`: the embedding network $f_\theta$, `[n, *in] -> [n, d]`; any callable on a batch.
    - `amortiser`: $\phi$, from class means `[way, d]` to a `HeadPosterior`; `Amortiser(d, key=...)` as published, or
      any callable. Where it treats every row alike, any number of classes can be asked for.
    - `num_samples`: $L$, at least 1; default 10, as published.
    - `loss`: `loss(log_probabilities, labels, *, reduction)`; default `mk.losses.cross_entropy`, which makes
      `meta_loss` the published objective. That is no bound: there is no KL term.
    - `norm_policy`: which batch a batch norm of `embed` takes its statistics from.
        - `"transductive"` (default, the released code's, in training and test): the support as one batch, the queries
          as another. The queries share information with each other.
        - `"joint"`: support and query in one batch. The queries share information here too.
        - `"inductive"`: statistics of the support set, frozen. A prediction depends on nothing but the support, its own
          query and the key.

        Name the policy beside every accuracy you report.

    **Raises:** `ValueError` for an unknown `norm_policy`, or a `num_samples` below 1.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.versa.Versa(lambda x: x, mk.versa.Amortiser(2, key=jax.random.key(0)))
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.versa.predict(mk.versa.adapt(learner, support), jnp.ones((5, 2)), jax.random.key(1)).shape
    (5, 2)

    **Source:** Gordon et al. 2019, *Meta-Learning Probabilistic Inference For Prediction*, sections 2 and 3,
    https://arxiv.org/abs/1805.09921, and its code, https://github.com/Gordonjo/versa. The code scores accuracy by the
    log-mean-exp of the sampled *logits*; here a prediction is the mean of the sampled probabilities, which is what is
    trained. Published training on Omniglot: 16 tasks a step with 15 queries of each class, Adam at 1e-4, 80,000 steps.
    """

    gives_log_probabilities: ClassVar[bool] = True

    embed: Callable[..., Any] = eqx.field(converter=as_node)
    amortiser: Callable[..., Any] = eqx.field(converter=as_node)
    loss: losses.Loss = eqx.field(converter=as_node)
    num_samples: int = eqx.field(static=True)
    norm_policy: Literal["joint", "transductive", "inductive"] = eqx.field(static=True)

    def __init__(
        self,
        embed: Callable[..., Any],
        amortiser: Callable[..., Any],
        *,
        num_samples: int = 10,
        loss: losses.Loss = losses.cross_entropy,
        norm_policy: str = "transductive",
    ):
        require_option("norm_policy", norm_policy, NORM_POLICIES)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}; the published number is 10.")
        self.embed = embed
        self.amortiser = amortiser
        self.loss = loss
        self.num_samples = num_samples
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: its support set, embedded as far as the policy allows, whose class is whose and,
    unless the policy is joint, the distribution over its classifiers.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.versa.Versa(lambda x: x, mk.versa.Amortiser(2, key=jax.random.key(0)))
    >>> mk.versa.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2)).posterior.bias_mean.shape
    (2,)
    """

    learner: Versa
    support: EmbeddedSupport
    membership: Bool[Array, "n way"]
    posterior: HeadPosterior | None


@typed
def adapt(learner: Versa, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: embed its support set and read the distribution over classifiers off it.

    **Arguments:**

    - `learner`: a `Versa`.
    - `support`: labelled examples with `way`; shots may differ between classes. A label outside `0..way-1` makes
      every prediction NaN; `mk.check_values` names it.
    - `key`: accepted and not used; the distribution is not random.

    **Returns:** an `Adapted` for `predict`. Under `norm_policy="joint"` the distribution waits for the queries.

    **Raises:** `ValueError` when `support.way` is missing, when `support.y` is not `[n]` integers, when `embed` does
    not return `[n, d]`, or when the amortiser was built for features of another size.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.versa.Versa(lambda x: x, mk.versa.Amortiser(2, key=jax.random.key(0)))
    >>> mk.versa.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2)).posterior.weight_mean.shape
    (2, 2)
    """
    del key
    members = membership(support.y, require_labels(support, "Versa"))
    embedded = embed_support(learner.embed, None, support.x, learner.norm_policy)
    posterior = None if embedded.features is None else _posterior(learner, embedded.features, members)
    return Adapted(learner, embedded, members, posterior)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    """Average the probabilities of `num_samples` classifiers.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: needed, for the samples. The same key gives the same prediction.

    **Returns:** log-probabilities `[query, way]` (they count as logits), minus infinity for a class without support
    examples.

    **Raises:** `ValueError` without a key, when `x` and the support differ in the shape of an example, or when `embed`
    does not return `[n, d]`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.versa.Versa(lambda x: x, mk.versa.Amortiser(2, key=jax.random.key(0)))
    >>> adapted = mk.versa.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2))
    >>> jnp.exp(mk.versa.predict(adapted, jnp.eye(2), jax.random.key(1))).sum(1).round(5).tolist()
    [1.0, 1.0]
    """
    key = require_key(key, "Versa", "predict")
    learner, members = adapted.learner, adapted.membership
    features, queries = embed_queries(adapted.support, x)
    posterior = _posterior(learner, features, members) if adapted.posterior is None else adapted.posterior
    mean, variance = logit_moments(posterior, queries)
    noise = jax.random.normal(key, (learner.num_samples, *mean.shape), mean.dtype)
    logits = mean[None] + _root(variance)[None] * noise

    present = jnp.any(members, axis=0)[None]
    lowest = jnp.full((), -jnp.inf, logits.dtype)
    log_probabilities = jax.nn.log_softmax(jnp.where(present[None], logits, lowest), axis=-1)
    # An absent class waits at 0, since the mean of probabilities that are all zero has no derivative.
    finite = jnp.where(present[None], log_probabilities, jnp.zeros_like(log_probabilities))
    log_mean = jax.nn.logsumexp(finite, axis=0) - jnp.log(jnp.asarray(learner.num_samples, logits.dtype))
    return nan_unless_classes(jnp.where(present, log_mean, lowest), members)


@typed
def meta_loss(learner: Versa, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""Mean negative log-probability of the queries' labels, averaged over classifiers before the logarithm.

    $$-\frac{1}{|Q|}\sum_{(x, y) \in Q} \log \frac{1}{L}\sum_{l=1}^{L} p\bigl(y \mid x, w^{(l)}, b^{(l)}\bigr)$$

    **Arguments:**

    - `learner`: a `Versa`.
    - `task`: an `Episode` of labelled examples with `way`.
    - `key`: needed, for the samples.

    **Returns:** a scalar, in nats per query for the default loss; infinite where a query's class has no support.

    **Raises:** `ValueError` without a key, and what `adapt` and `predict` raise.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.versa.Versa(lambda x: x, mk.versa.Amortiser(2, key=jax.random.key(0)))
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.versa.meta_loss(learner, mk.Episode(examples, examples), jax.random.key(1)).shape
    ()
    """
    key = require_key(key, "Versa", "meta_loss")
    require_labels(task.query, "Versa", name="query")
    outputs = predict(adapt(learner, task.support), task.query.x, key)
    return learner.loss(outputs, task.query.y, reduction="mean")


def _posterior(learner: Versa, features: Float[Array, "n d"], members: Bool[Array, "n way"]) -> HeadPosterior:
    means, _ = prototypes(features, members)
    return learner.amortiser(means)


def _root(variance: Array) -> Array:
    """The square root, with a zero derivative where a variance has underflowed to zero instead of an infinite one."""
    zero = variance == 0
    return jnp.where(zero, variance, jnp.sqrt(jnp.where(zero, jnp.ones_like(variance), variance)))
