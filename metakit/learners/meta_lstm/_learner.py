"""The learner of the Meta-Learner LSTM: a model whose weights are the initial parameters, and an update rule."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import Array

from metakit import losses
from metakit._errors import require_option
from metakit._hyperparameter import trainable
from metakit._static import as_node
from metakit._typecheck import typed
from metakit.inner import select as selection
from metakit.learners._minibatches import check_batch_size
from metakit.learners._network import check_loss, check_model, check_query_loss, not_statistics

from ._update import LearnedUpdate

_NORM_POLICIES = ("transductive", "inductive")


class MetaLSTM(eqx.Module):
    r"""An LSTM that learned how to train a network: its cell state is the network's parameters.

    $$\theta_0 = c_I, \qquad \theta_t = \sigma(\tilde f_t) \odot \theta_{t-1} - \sigma(\tilde\imath_t) \odot
      \nabla L_{B_t}(\theta_{t-1}), \qquad \min_{c_I,\,\text{LSTM}} \sum_{\text{tasks}} L_Q(\theta_T)$$

    The forget gate is a decay of the weights, the input gate a rate, both for each coordinate and step: see
    `LearnedUpdate`. The initial parameters $c_I$ are the weights of `model`.

    **Arguments:**

    - `model`: any Equinox module with `model(x: [n, *in]) -> [n, *out]` on one batch; all its arrays of one dtype.
    - `update`: a `LearnedUpdate`.
    - `num_steps`: updates $T$, static, at least 0. Published for 5 classes: 12 at 1 shot, 8 at 5 (its code).
    - `batch_size`: support examples in an update's batch $B_t$; `None`, the default and published, is all of them.
      Smaller batches cycle without replacement through the shuffled support set.
    - `loss`: an `mk.losses` function, or your own `loss(outputs, targets, *, reduction)`; default `cross_entropy`. A
      module with weights needs a `query_loss` beside it, and `second_order=True`, without which nothing reaches them.
    - `query_loss`: what judges the adapted model; `None`, the default, is `loss`, which may not be one that is trained.
    - `second_order`: whether the meta-gradient goes through the gradients $\nabla L$ and losses that the LSTM reads.
      Default `False`, the published way: they count as constants. `True` is exact and costs second derivatives.
    - `select`: which leaves adapt, a filter of `mk.inner.select`; default all, norm layers' scales and offsets
      included, as published. The others are meta-trained only.
    - `norm_policy`: whose statistics batch norm uses at prediction: `"transductive"` (default), the query batch's, or
      `"inductive"`, the support set's under the adapted parameters. An update uses its own batch's. Nothing outlives
      an episode. The released code trains transductively and tests inductively, on running statistics that it resets
      for each episode. Name the policy beside every accuracy you report.

    On real targets start gently: the first rates are the input gate's, 0.007 to 0.018, made for cross-entropy. On
    sinusoids an `mk.nn.MLP(1, 1, 16, 1)` of the default He weights goes from a query loss of 57 to millions in 3
    updates; with `weight_init=mk.nn.xavier_uniform` from 9.4 to 4.9. `diagnostics` shows it in `inner_losses`.

    The memory is that of a few networks and, for each parameter and update, `2 * hidden_size + 4` numbers.

    **Raises:** `ValueError` for a `num_steps` that is negative or no int, a `batch_size` below 1, an unknown
    `norm_policy`, a filter that selects nothing, a `loss` with weights and no `query_loss` or no `second_order`,
    selected arrays of several dtypes, or a model with Equinox state; `TypeError` for a model or a loss that cannot be
    called, or an `update` that is no `LearnedUpdate`.

    **Source:** Ravi and Larochelle 2017, "Optimization as a Model for Few-Shot Learning",
    https://openreview.net/forum?id=rJY0-Kcll, and its code, https://github.com/twitter/meta-learning-lstm. Published
    training: `mk.train.adam(1e-3, clip_norm=0.25)`, one episode a step with 15 queries a class, `mk.nn.conv4_32`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=5, loss=mk.losses.squared_error)
    >>> learner.num_steps
    5
    """

    model: Any
    update: LearnedUpdate
    num_steps: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    loss: Callable[..., Array] = eqx.field(converter=as_node)
    query_loss: Callable[..., Array] | None = eqx.field(converter=as_node)
    second_order: bool = eqx.field(static=True)
    select: Callable[[Any], Any] = eqx.field(static=True)
    norm_policy: Literal["transductive", "inductive"] = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        *,
        update: LearnedUpdate,
        num_steps: int,
        batch_size: int | None = None,
        loss: Callable[..., Array] = losses.cross_entropy,
        query_loss: Callable[..., Array] | None = None,
        second_order: bool = False,
        select: Callable[[Any], Any] = selection.everything,
        norm_policy: str = "transductive",
    ):
        check_model(model)
        check_loss(loss)
        check_query_loss(loss, query_loss, "MetaLSTM")
        if not second_order and any(jax.tree.leaves(trainable(loss))):
            raise ValueError(
                "loss has weights of its own, which get no gradient while the LSTM reads its gradients as constants: "
                "they would never move. Use second_order=True, or put them into mk.fixed."
            )
        if not isinstance(update, LearnedUpdate):
            raise TypeError(
                "update must be an mk.meta_lstm.LearnedUpdate, such as LearnedUpdate(key=key); got "
                f"{type(update).__name__}. mk.maml takes the fixed rules of mk.inner."
            )
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 0:
            raise ValueError(
                f"num_steps must be a Python int of at least 0 (it is static), got {num_steps!r}. 0 updates return the "
                "parameters unchanged."
            )
        check_batch_size(batch_size)
        require_option("norm_policy", norm_policy, _NORM_POLICIES)
        self.model = model
        self.update = update
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.loss = loss
        self.query_loss = query_loss
        self.second_order = second_order
        self.select = select
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(moving_parts(self)[0])}
        if len(dtypes) > 1:
            raise ValueError(
                f"the parameters that adapt must share a dtype, since they are one cell state, got {sorted(dtypes)}."
            )


class Adapted(eqx.Module):
    """A model adapted to one task, ready for `predict`.

    - `model`: the model after the last update; under the inductive policy with the support's statistics.
    - `way`: how many classes the support set's labels counted from, `None` for regression.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, loss=mk.losses.squared_error)
    >>> mk.meta_lstm.adapt(learner, mk.tasks.Sinusoid()(jax.random.key(2)).support).way is None
    True
    """

    model: Any
    way: int | None = eqx.field(static=True)


@typed
def with_num_steps(learner: MetaLSTM, num_steps: int) -> MetaLSTM:
    """The same learner with another number of updates, such as for evaluation at another shot.

    **Arguments:** `learner`; `num_steps`, static, at least 0 (published: 5 for a test at the shot not trained with).

    **Returns:** a new learner.

    **Raises:** `ValueError` for a negative number.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=12)
    >>> mk.meta_lstm.with_num_steps(learner, 5).num_steps
    5
    """
    return dataclasses.replace(learner, num_steps=num_steps)


@typed
def with_batch_size(learner: MetaLSTM, batch_size: int | None) -> MetaLSTM:
    """The same learner with other batches: one trained at 1 shot is tested at 5 with batches of its own size.

    **Arguments:** `learner`; `batch_size`, as in `MetaLSTM`.

    **Returns:** a new learner.

    **Raises:** `ValueError` for a batch size below 1.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=12)
    >>> mk.meta_lstm.with_batch_size(mk.meta_lstm.with_num_steps(learner, 25), 5).batch_size
    5
    """
    return dataclasses.replace(learner, batch_size=batch_size)


def moving_parts(learner: MetaLSTM) -> tuple[Any, Any]:
    """The leaves that the updates move, and the rest of the model."""
    return selection.partition(learner.model, selection.intersection(learner.select, not_statistics))
