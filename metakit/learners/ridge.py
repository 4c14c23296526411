"""Closed-form heads: a linear regression or logistic regression on learned features, solved for every task.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `Ridge` and its published configurations
`r2d2` and `lrd2`.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from metakit import losses
from metakit._episode import Episode, Examples, require_one_input, require_unmasked
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter, learned
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar

from ._closed_form import (
    FORMS,
    logistic_regression as logistic_regression,
    ridge_regression as ridge_regression,
)
from ._embedding import NORM_POLICIES, EmbeddedSupport, embed_queries, embed_support
from ._labels import classifies, membership, nan_unless_classes, require_labels
from ._options import positive, scalar

_HEADS = ("ridge", "logistic")
_REDUCTIONS = ("sum", "mean")


class Ridge(eqx.Module):
    r"""A learned embedding with a linear head that is solved for on each task's support set.

    $$W = \arg\min_W \sum_{i=1}^{n} \lVert W^\top z_i - y_i\rVert^2 + \lambda\lVert W\rVert^2, \qquad
      \hat y = a\, W^\top z + b, \qquad z = (f_\theta(x), 1)$$

    With integer labels and a `way`, $y_i$ is the label's one-hot row and $\hat y$ are logits; with real targets
    $\hat y$ is the prediction.

    **Arguments:**

    - `embed`: the embedding network $f_\theta$, `[n, *in] -> [n, d]`; any callable on a batch.
    - `head`: `"ridge"` (default), the least squares above, or `"logistic"`: for each class a logistic regression
      against all others with a penalty of $\tfrac{\lambda}{2}\lVert w\rVert^2$, by `num_steps` Newton steps. That one
      needs labels.
    - `penalty`: $\lambda$, above 0, a number or a `Hyperparameter`; default fixed at 1. It is held as its logarithm, so
      that a learned one stays positive and moves by factors.
    - `scale`, `bias`: $a$ and $b$, numbers or `Hyperparameter`s; fixed at 1 and 0 by default. Least squares makes
      logits of size 1, so for classes take `mk.learned(10.0)`. A cross-entropy does not see $b$.
    - `reduction`: whether $\lambda$ is weighed against the `"sum"` over examples (default, the paper's equation) or
      their `"mean"` (its released ridge code, which divides $Z$ and $Y$ by $\sqrt n$).
    - `intercept`: whether a 1 is appended to the features, which gives an intercept that is penalised like every other
      weight; default `True`, as in the released code.
    - `form`: `"auto"` (default) solves the smaller of the `"primal"` and the `"woodbury"` system.
    - `num_steps`: Newton steps of the logistic head, at least 1; default 5.
    - `loss`: `loss(outputs, targets, *, reduction)` of the queries; default `None`: `mk.losses.cross_entropy` for
      labels, `mk.losses.squared_error` for real targets.
    - `norm_policy`: which batch a batch norm of `embed` takes its statistics from.
        - `"joint"` (default, how the published networks were trained): support and query in one batch. This is
          *transductive*: the queries share information with each other.
        - `"transductive"`: the support as one batch, the queries as another. They share information here too.
        - `"inductive"`: statistics of the support set, frozen. A prediction depends on nothing but the support and its
          own query.

        Name the policy beside every accuracy you report. The joint policy solves again for each `predict`; where
        `embed` has no batch norm, `"transductive"` gives the same numbers and solves once.

    **Raises:** `ValueError` for an unknown `head`, `reduction`, `form` or `norm_policy`, a `penalty` that is not
    positive, a `penalty`, `scale` or `bias` of several numbers, or a `num_steps` below 1.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [2.0]]))
    >>> learner = mk.ridge.Ridge(lambda x: x, penalty=5.0, intercept=False)
    >>> mk.ridge.predict(mk.ridge.adapt(learner, support), jnp.array([[4.0]])).round(5).tolist()
    [[2.0]]

    **Source:** Bertinetto et al. 2019, *Meta-learning with differentiable closed-form solvers*, section 3,
    https://arxiv.org/abs/1805.08136, and its code, https://github.com/bertinetto/r2d2
    """

    embed: Callable[..., Any] = eqx.field(converter=as_node)
    log_penalty: Hyperparameter
    scale: Hyperparameter
    bias: Hyperparameter
    loss: losses.Loss | None = eqx.field(converter=as_node)
    head: Literal["ridge", "logistic"] = eqx.field(static=True)
    reduction: Literal["sum", "mean"] = eqx.field(static=True)
    form: Literal["auto", "primal", "woodbury"] = eqx.field(static=True)
    norm_policy: Literal["joint", "transductive", "inductive"] = eqx.field(static=True)
    intercept: bool = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        embed: Callable[..., Any],
        *,
        head: str = "ridge",
        penalty: Hyperparameter | ArrayLike = 1.0,
        scale: Hyperparameter | ArrayLike = 1.0,
        bias: Hyperparameter | ArrayLike = 0.0,
        reduction: str = "sum",
        intercept: bool = True,
        form: str = "auto",
        num_steps: int = 5,
        loss: losses.Loss | None = None,
        norm_policy: str = "joint",
    ):
        require_option("head", head, _HEADS)
        require_option("reduction", reduction, _REDUCTIONS)
        require_option("form", form, FORMS)
        require_option("norm_policy", norm_policy, NORM_POLICIES)
        if num_steps < 1:
            raise ValueError(f"num_steps is the number of Newton steps and must be at least 1, got {num_steps}.")
        penalty = positive("penalty", penalty)
        self.embed = embed
        self.log_penalty = Hyperparameter(jnp.log(penalty.value), penalty.learned)
        self.scale, self.bias = scalar("scale", scale), scalar("bias", bias)
        self.loss = loss
        self.head = head  # pyright: ignore[reportAttributeAccessIssue]
        self.reduction = reduction  # pyright: ignore[reportAttributeAccessIssue]
        self.form = form  # pyright: ignore[reportAttributeAccessIssue]
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]
        self.intercept, self.num_steps = intercept, num_steps

    @property
    def penalty(self) -> Scalar:
        return jnp.exp(self.log_penalty.value)


def r2d2(embed: Callable[..., Any], **options: Any) -> Ridge:
    """R2-D2: ridge regression as published for Omniglot.

    **Arguments:** as `Ridge`, with a fixed penalty of 50 against the *mean* over examples, and a scale and a bias that
    are learned from 10 and 0. The paper learns the penalty too, `penalty=mk.learned(50.0)`; its code does not. For
    mini-ImageNet the code starts the scale at 1e-4.

    **Returns:** a `Ridge`.

    **Source:** Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136; numbers from
    https://github.com/bertinetto/r2d2, `scripts/train`. Published training on Omniglot: 60-way, 600 images an episode,
    a shot of 1 to 10, Adam at 5e-3 halved every 2000 episodes.

    >>> import metakit as mk
    >>> learner = mk.ridge.r2d2(lambda x: x)
    >>> learner.scale.learned, learner.log_penalty.learned
    (True, False)
    """
    published = {"penalty": 50.0, "reduction": "mean", "scale": learned(10.0), "bias": learned(0.0)}
    return Ridge(embed, **{**published, **options})


def lrd2(embed: Callable[..., Any], *, num_steps: int = 5, **options: Any) -> Ridge:
    """LR-D2: one-against-all logistic regression by a few Newton steps.

    **Arguments:** as `Ridge` with `head="logistic"`; `num_steps`, default 5 (the paper tries 1 to 10). As in the
    released code the penalty is fixed at 50, against the *sum* over examples, and the scores are used without a scale;
    they are small then, so `scale=mk.learned(10.0)` trains faster.

    **Returns:** a `Ridge`.

    **Source:** Bertinetto et al. 2019, https://arxiv.org/abs/1805.08136; numbers from
    https://github.com/bertinetto/r2d2, `scripts/train/mini_lrd2.sh`.

    >>> import metakit as mk
    >>> mk.ridge.lrd2(lambda x: x, num_steps=1).head
    'logistic'
    """
    return Ridge(embed, num_steps=num_steps, **{"head": "logistic", "penalty": 50.0, **options})


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: its support set, embedded as far as the policy allows, its targets and, unless
    the policy is joint, the weights of the head.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.ridge.adapt(mk.ridge.Ridge(lambda x: x, norm_policy="transductive"), support).weights.shape
    (3, 2)
    """

    learner: Ridge
    support: EmbeddedSupport
    targets: Shaped[Array, "n *out"]
    weights: Float[Array, "d m"] | None
    classifies: bool = eqx.field(static=True)


@typed
def adapt(learner: Ridge, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: embed its support set and solve for the head.

    **Arguments:**

    - `learner`: a `Ridge`.
    - `support`: integer labels with `way` to classify, or real targets of any shape without it to regress. A
      label outside `0..way-1` makes every prediction NaN; `mk.check_values` names it.
    - `key`: accepted and not used; nothing here is random.

    **Returns:** an `Adapted` for `predict`. Under `norm_policy="joint"` the head waits for the queries.

    **Raises:** `ValueError` when integer targets come without a `way` or not as `[n]`, when the logistic head gets real
    targets, or when `embed` does not return `[n, d]`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> learner = mk.ridge.Ridge(lambda x: x, intercept=False, norm_policy="transductive")
    >>> mk.ridge.adapt(learner, support).weights.round(5).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    del key
    require_one_input(support, "Ridge", "support")
    labelled = classifies(support) or learner.head == "logistic"
    targets = membership(support.y, require_labels(support, "Ridge")) if labelled else support.y
    embedded = embed_support(learner.embed, None, support.x, learner.norm_policy)
    weights = None if embedded.features is None else _solve(learner, embedded.features, targets)
    return Adapted(learner, embedded, targets, weights, labelled)


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query *out"]:
    """Apply the task's head to queries.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: accepted and not used.

    **Returns:** logits `[query, way]`, minus infinity for a class without support examples; or `[query, *out]` real
    values.

    **Raises:** `ValueError` when `x` and the support differ in the shape of an example, or when `embed` does not return
    `[n, d]`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=3)
    >>> learner = mk.ridge.Ridge(lambda x: x, scale=4.0, intercept=False)
    >>> mk.ridge.predict(mk.ridge.adapt(learner, support), jnp.eye(2)[:1]).round(5).tolist()
    [[2.0, 0.0, -inf]]
    """
    del key
    learner, targets = adapted.learner, adapted.targets
    features, queries = embed_queries(adapted.support, x)
    weights = _solve(learner, features, targets) if adapted.weights is None else adapted.weights
    fitted = jnp.matmul(_with_intercept(learner, queries), weights, precision=jax.lax.Precision.HIGHEST)
    outputs = learner.scale.value.astype(fitted.dtype) * fitted + learner.bias.value.astype(fitted.dtype)
    if not adapted.classifies:
        return outputs.reshape(x.shape[0], *targets.shape[1:])
    present = jnp.any(targets, axis=0)[None]
    outputs = jnp.where(present, outputs, jnp.full_like(outputs, -jnp.inf))
    return nan_unless_classes(outputs, targets)


@typed
def meta_loss(learner: Ridge, task: Episode, key: PRNGKey | None = None) -> Scalar:
    """Mean loss of the queries after adaptation to the support set.

    **Arguments:**

    - `learner`: a `Ridge`.
    - `task`: an `Episode`, of labels with `way` or of real targets.
    - `key`: accepted and not used.

    **Returns:** a scalar: with the default losses, nats per query for labels (infinite where a query's class has no
    support), a mean squared error for real targets. Its gradient goes through the solution, exactly.

    **Raises:** what `adapt` and `predict` raise.

    >>> import jax.numpy as jnp, metakit as mk
    >>> examples = mk.Examples(jnp.zeros((2, 1)), jnp.arange(2), way=2)
    >>> round(float(mk.ridge.meta_loss(mk.ridge.Ridge(lambda x: x), mk.Episode(examples, examples))), 4)
    0.6931
    """
    del key
    require_unmasked(task.query, "Ridge", "query")
    adapted = adapt(learner, task.support)
    if adapted.classifies:
        require_labels(task.query, "Ridge", name="query")
    loss = learner.loss
    if loss is None:
        loss = losses.cross_entropy if adapted.classifies else losses.squared_error
    return loss(predict(adapted, task.query.x), task.query.y, reduction="mean")


def _solve(
    learner: Ridge, features: Float[Array, "n d"], targets: Shaped[Array, "n *out"]
) -> Float[Array, "d_and_intercept m"]:
    features = _with_intercept(learner, features)
    penalty = learner.penalty.astype(features.dtype)
    if learner.reduction == "mean":
        # λ against the mean is nλ against the sum.
        penalty = penalty * features.shape[0]
    if learner.head == "logistic":
        return logistic_regression(features, targets, penalty, num_steps=learner.num_steps, form=learner.form)
    rows = targets.reshape(targets.shape[0], -1).astype(features.dtype)
    return ridge_regression(features, rows, penalty, form=learner.form)


def _with_intercept(learner: Ridge, features: Float[Array, "n d"]) -> Float[Array, "n d_and_intercept"]:
    if not learner.intercept:
        return features
    return jnp.concatenate([features, jnp.ones((features.shape[0], 1), features.dtype)], axis=1)
