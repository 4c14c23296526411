"""The learner of MAML: a model, an inner loop, and how a loss is reduced."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, Float

from metakit import losses
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter, as_hyperparameter, trainable
from metakit._static import as_node
from metakit._typecheck import typed
from metakit.inner import AbstractAdjoint, AbstractSolver, Auto, Unrolled, check_steps, select as selection
from metakit.learners._network import check_instance, check_loss, check_model, check_query_loss
from metakit.learners._options import positive

NormPolicy: TypeAlias = Literal["transductive", "inductive"]
Reduction: TypeAlias = Literal["mean", "sum/shot"]


class MAML(eqx.Module):
    r"""Model-agnostic meta-learning: an initialisation from which a few gradient steps learn a task.

    $$\theta_0 = \theta, \qquad \theta_{t+1} = \theta_t - \alpha \nabla L_S(\theta_t), \qquad
    \min_\theta \sum_{\text{tasks}} L_Q(\theta_K)$$

    **Arguments:**

    - `model`: any Equinox module with `model(x: [n, *in]) -> [n, *out]` on one batch; lift a module for one example
      with `mk.nn.batched`. Every floating-point array in it is meta-trained.
    - `inner`: the update rule of the inner loop, such as `mk.inner.SGD(0.4)`.
    - `num_steps`: inner steps $K$, static, at least 0.
    - `loss`: an `mk.losses` function, or your own `loss(outputs, targets, *, reduction)`; default `cross_entropy`. A
      module with weights works, and they are meta-trained; it needs a `query_loss` beside it.
    - `query_loss`: what judges the adapted model; `None`, the default, is `loss`. A `loss` that is trained may not
      judge itself: it would learn to be small. Give the loss that you care about, such as
      `mk.losses.squared_error`.
    - `reduction`: of the *inner* loss over the support set. `"mean"`, the default, or `"sum/shot"`: the sum divided by
      the shot $n/\text{way}$, as published; it is `way` times the mean, so a published rate of 0.4 for 5 classes is
      2.0 for the mean. The query loss is always a mean.
    - `adjoint`: how the inner loop is differentiated; default `mk.inner.Unrolled()`, the exact second order. `"auto"`
      is `mk.inner.Auto()`, an exact one chosen by size when the loop is traced; `choose_adjoint` says which and why.
      One that gives no gradient of the initialisation or of a learned number of `inner` raises when differentiated.
    - `select`: which leaves adapt, a filter of `mk.inner.select`; default all. The others are meta-trained only.
    - `step_weights`: `[num_steps]`; weights of the query loss after each step (MAML++'s multi-step loss). `None`, the
      default, for the loss after the last step alone.
    - `norm_policy`: what batch norm's statistics are at prediction. `"transductive"`, the default and the published
      way: those of the query batch, so predictions depend on one another. `"inductive"`: those of the support set
      under the adapted parameters; a model without batch norm then raises. Report it beside every accuracy.
    - `proximal`: $\lambda$, a number or a `Hyperparameter`, of a pull towards the initialisation,
      $\frac\lambda2 \lVert\phi - \theta\rVert^2$, that is added to the inner loss after its reduction; `None`, the
      default, for none. With it the end of the inner loop depends on the initialisation even at convergence: `imaml`.

    **Raises:** `ValueError` for a negative `num_steps`, more steps than the solver has rates for, an unknown option,
    `step_weights` or `proximal` of another shape, a filter that selects nothing, a `loss` with weights and no
    `query_loss` or under an adjoint that gives it no gradient, or a model with Equinox state; `TypeError` for a model
    or a loss that cannot be called, or an `inner` or `adjoint` that is not one.

    **Source:** Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    algorithms 1 and 2, https://arxiv.org/abs/1703.03400. The released code divides the query loss by the shot too,
    where here it is a mean: that scales the meta-gradient by a constant, which Adam ignores up to its epsilon, but
    an elementwise clip does not.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, jax.nn.relu, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=1, loss=mk.losses.squared_error)
    >>> learner.num_steps
    1
    """

    model: Any
    inner: AbstractSolver
    num_steps: int = eqx.field(static=True)
    loss: Callable[..., Array] = eqx.field(converter=as_node)
    query_loss: Callable[..., Array] | None = eqx.field(converter=as_node)
    reduction: Reduction = eqx.field(static=True)
    adjoint: AbstractAdjoint
    select: Callable[[Any], Any] = eqx.field(static=True)
    step_weights: Hyperparameter | None
    norm_policy: NormPolicy = eqx.field(static=True)
    proximal: Hyperparameter | None

    def __init__(
        self,
        model: Any,
        *,
        inner: AbstractSolver,
        num_steps: int,
        loss: Callable[..., Array] = losses.cross_entropy,
        query_loss: Callable[..., Array] | None = None,
        reduction: Reduction = "mean",
        adjoint: AbstractAdjoint | Literal["auto"] | None = None,
        select: Callable[[Any], Any] = selection.everything,
        step_weights: Hyperparameter | ArrayLike | None = None,
        norm_policy: NormPolicy = "transductive",
        proximal: Hyperparameter | ArrayLike | None = None,
    ):
        adjoint = Unrolled() if adjoint is None else adjoint
        adjoint = Auto() if isinstance(adjoint, str) and adjoint == "auto" else adjoint
        check_model(model)
        check_loss(loss)
        check_instance("inner", inner, AbstractSolver, "mk.inner.SGD(0.4)")
        check_instance("adjoint", adjoint, AbstractAdjoint, "mk.inner.Unrolled()")
        require_option("reduction", reduction, ["mean", "sum/shot"])
        require_option("norm_policy", norm_policy, ["transductive", "inductive"])
        selection.partition(model, select)  # for its errors
        check_steps(inner, num_steps)
        check_query_loss(loss, query_loss, "MAML")
        if "args" in adjoint.dropped(num_steps) and any(jax.tree.leaves(trainable(loss))):
            raise ValueError(
                f"loss is learned, but {type(adjoint).__name__} gives no gradient of what the inner loss depends "
                "on, so it would never move. Put its numbers into mk.fixed, or use another: mk.inner.Unrolled()."
            )
        self.model = model
        self.inner = inner
        self.num_steps = num_steps
        self.loss = loss
        self.query_loss = query_loss
        self.reduction = reduction
        self.adjoint = adjoint
        self.select = select
        self.step_weights = None if step_weights is None else _weights(step_weights, num_steps)
        self.norm_policy = norm_policy
        self.proximal = None if proximal is None else positive("proximal", proximal)


class Adapted(eqx.Module):
    """A model adapted to one task, ready for `predict`.

    - `model`: the model after the last inner step, its norm layers resolved to the step and the policy in force.
    - `way`: how many classes the support set's labels counted from, `None` for regression.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.adapt(learner, episode.support).way is None
    True
    """

    model: Any
    way: int | None = eqx.field(static=True)


@typed
def with_adjoint(learner: MAML, adjoint: AbstractAdjoint | Literal["auto"]) -> MAML:
    """The same learner, differentiated another way.

    MAML++'s annealing from first to second order is two phases of training: the first with
    `with_adjoint(learner, mk.inner.FirstOrder())`, the second with `with_adjoint(learner, mk.inner.Unrolled())`. No
    array changes, so `mk.train.with_learner` carries the optimiser's state over; each phase compiles once.

    **Arguments:** `learner`; `adjoint`, any of `mk.inner`, or `"auto"`.

    **Returns:** a new learner.

    **Source:** Antoniou et al. 2019, "How to train your MAML", section 4, https://arxiv.org/abs/1810.09502.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> type(mk.maml.with_adjoint(learner, mk.inner.FirstOrder()).adjoint).__name__
    'FirstOrder'
    """
    return dataclasses.replace(learner, adjoint=adjoint)


@typed
def with_num_steps(learner: MAML, num_steps: int) -> MAML:
    """The same learner with another number of inner steps, for evaluation at more steps than training took.

    Multi-step weights belong to the old number and are dropped; only `meta_loss` used them.

    **Arguments:** `learner`; `num_steps`, static, at least 0.

    **Returns:** a new learner.

    **Raises:** `ValueError` for a negative number, or more than the solver has rates for.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> mk.maml.with_num_steps(learner, 10).num_steps
    10
    """
    return dataclasses.replace(learner, num_steps=num_steps, step_weights=None)


@typed
def with_step_weights(learner: MAML, weights: Float[Array, " num_steps"]) -> MAML:
    """The same learner with other multi-step weights, such as those of `multi_step_weights` at this training step.

    Only an array changes, so nothing compiles again, and `weights` may be traced.

    **Arguments:** `learner`; `weights`, `[num_steps]`.

    **Returns:** a new learner.

    **Raises:** `ValueError` when there is not one weight per inner step.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> import jax.numpy as jnp
    >>> learner = mk.maml.mamlpp(model, rate=0.01, num_steps=2, loss=mk.losses.squared_error)
    >>> mk.maml.with_step_weights(learner, jnp.array([0.25, 0.75])).step_weights.value.tolist()
    [0.25, 0.75]
    """
    return dataclasses.replace(learner, step_weights=weights)


def _weights(weights: Hyperparameter | ArrayLike, num_steps: int) -> Hyperparameter:
    hyperparameter = as_hyperparameter(weights)
    if hyperparameter.value.shape != (num_steps,):
        raise ValueError(
            f"step_weights must hold one weight per inner step, shape [{num_steps}], got "
            f"{list(hyperparameter.value.shape)}. mk.maml.multi_step_weights(step, {num_steps}, decay_steps) makes one."
        )
    if num_steps == 0:
        raise ValueError("step_weights needs num_steps >= 1: with no inner step there is no loss to weigh.")
    return hyperparameter
