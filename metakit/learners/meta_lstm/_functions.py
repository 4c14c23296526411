"""The Meta-Learner LSTM's three functions, and what can be reported beside them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from metakit import nn
from metakit._episode import Episode, Examples
from metakit._typecheck import typed
from metakit._types import Inputs, PRNGKey, Scalar
from metakit.learners._minibatches import batch, batches_of
from metakit.learners._network import check_targets, check_way

from ._learner import Adapted, MetaLSTM, moving_parts
from ._update import LearnedUpdate, UpdateState


@typed
def adapt(learner: MetaLSTM, support: Examples, key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task: `num_steps` updates by the LSTM from the learned initial parameters.

    $$\theta_t = \sigma(\tilde f_t) \odot \theta_{t-1} - \sigma(\tilde\imath_t) \odot \nabla L_{B_t}(\theta_{t-1})$$

    **Arguments:**

    - `learner`: a `MetaLSTM`.
    - `support`: the support set of one task.
    - `key`: shuffles the support set into batches; not used where `batch_size` is `None`.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when the model's outputs do not fit the labels, when labels are needed and absent, or when
    batches are asked for without a key.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, loss=mk.losses.squared_error)
    >>> mk.meta_lstm.adapt(learner, mk.tasks.Sinusoid()(jax.random.key(2)).support).model.head.weight.shape
    (8, 1)
    """
    return _adapted(learner, _run(learner, support, key)[0], support)


@typed
def predict(adapted: Adapted, x: Inputs, key: PRNGKey | None = None) -> Float[Array, "n *out"]:
    """The adapted model's outputs: logits `[n, way]` for classes, `[n, *out]` for values.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: query inputs `[n, *in]`, or several of them as the support set has. Under the transductive policy batch norm
      takes its statistics from these `n` examples, so give it the whole query set at once.
    - `key`: not used.

    **Returns:** `[n, *out]`.

    **Raises:** `ValueError` when the model does not give one logit per class.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(2))
    >>> mk.meta_lstm.predict(mk.meta_lstm.adapt(learner, episode.support), episode.query.x).shape
    (10, 1)
    """
    del key
    outputs = adapted.model(x)
    check_way(outputs, adapted.way)
    return outputs


@typed
def meta_loss(learner: MetaLSTM, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""How well the model does on the query set after the LSTM trained it on the support set.

    $$L_Q(\theta_T), \qquad \text{with } \nabla L_{B_t} \text{ and } L_{B_t} \text{ constants unless }
      \texttt{second\_order}$$

    **Arguments:**

    - `learner`: a `MetaLSTM`.
    - `task`: one episode.
    - `key`: shuffles the support set into batches; not used where `batch_size` is `None`.

    **Returns:** a scalar, the mean over the query examples. Its gradient reaches the LSTM, the gates and the initial
    parameters through every update; through the gradients and losses that the LSTM reads only if the learner is
    `second_order`. Otherwise leaves that do not adapt get the query loss's own gradient.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, loss=mk.losses.squared_error)
    >>> mk.meta_lstm.meta_loss(learner, mk.tasks.Sinusoid()(jax.random.key(2))).shape
    ()
    """
    return _query_loss(learner, _run(learner, task.support, key)[0], task)


class Diagnostics(eqx.Module):
    """What the LSTM did on one task.

    - `inner_losses`: `[num_steps]`, the loss of each update's batch before it.
    - `forget_gates`, `input_gates`: `[num_steps]`, their means over coordinates: what part of the parameters stays, and
      the rate.
    - `query_loss_before`, `query_loss_after`: the query loss of the model as learned, and as adapted.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate.sgd(0.01, key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, loss=mk.losses.squared_error)
    >>> found = mk.meta_lstm.diagnostics(learner, mk.tasks.Sinusoid()(jax.random.key(2)))
    >>> [round(float(gate), 4) for gate in found.input_gates]
    [0.01, 0.01]
    """

    inner_losses: Float[Array, " num_steps"]
    forget_gates: Float[Array, " num_steps"]
    input_gates: Float[Array, " num_steps"]
    query_loss_before: Scalar
    query_loss_after: Scalar


@typed
def diagnostics(learner: MetaLSTM, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """The losses and gates along the updates of one task.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> update = mk.meta_lstm.LearnedUpdate(key=jax.random.key(1))
    >>> learner = mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, loss=mk.losses.squared_error)
    >>> mk.meta_lstm.diagnostics(learner, mk.tasks.Sinusoid()(jax.random.key(2))).inner_losses.shape
    (2,)
    """
    model, (inner_losses, forget, input) = _run(learner, task.support, key)
    return Diagnostics(
        inner_losses=inner_losses,
        forget_gates=forget,
        input_gates=input,
        query_loss_before=_query_loss(learner, learner.model, task),
        query_loss_after=_query_loss(learner, model, task),
    )


def _run(
    learner: MetaLSTM, support: Examples, key: PRNGKey | None
) -> tuple[Any, tuple[Float[Array, " steps"], Float[Array, " steps"], Float[Array, " steps"]]]:
    """The adapted model; each update's loss, and its gates' means."""
    check_targets(learner.loss, support, "support")
    rows = batches_of(support, learner.batch_size, learner.num_steps, key, "MetaLSTM")
    start, frozen = moving_parts(learner)
    flat, as_model = ravel_pytree(start)

    def loss_at(params: Float[Array, " p"], examples: Examples) -> Scalar:
        outputs = eqx.combine(as_model(params), frozen)(examples.x)
        check_way(outputs, examples.way)
        return learner.loss(outputs, examples.y, reduction="mean")

    def step(carry: tuple[Array, UpdateState], index: Int[Array, ""]) -> tuple[Any, Any]:
        params, state = carry
        loss, gradient = jax.value_and_grad(loss_at)(params, batch(support, rows, index))
        if not learner.second_order:
            # On the gradient and the loss, not on the parameters: the path from update to update stays.
            loss, gradient = jax.lax.stop_gradient((loss, gradient))
        params, state = _recomputed(learner.update, loss, gradient, params, state)
        means = [jnp.mean(jax.nn.sigmoid(gate)) for gate in (state.forget, state.input)]
        return (params, state), (loss, *means)

    steps = jnp.arange(learner.num_steps, dtype=jnp.int32)
    (params, _), reports = jax.lax.scan(step, (flat, learner.update.init(flat)), steps)
    return eqx.combine(as_model(params), frozen), reports


def _recomputed(update: LearnedUpdate, *args: Any) -> tuple[Array, UpdateState]:
    # An LSTM step leaves some 200 numbers for each parameter of the network to the backward pass, and takes 44 to
    # compute them again. Inside a scan nothing can be merged across steps, so a barrier against it would only cost.
    return eqx.filter_checkpoint(lambda rule, *rest: rule(*rest), prevent_cse=False)(update, *args)


def _adapted(learner: MetaLSTM, model: Any, support: Examples) -> Adapted:
    if learner.norm_policy == "inductive":
        model = nn.freeze_statistics(model, support.x)
    return Adapted(model, support.way)


def _query_loss(learner: MetaLSTM, model: Any, task: Episode) -> Scalar:
    loss = learner.loss if learner.query_loss is None else learner.query_loss
    check_targets(loss, task.query, "query")
    outputs = predict(_adapted(learner, model, task.support), task.query.x)
    return loss(outputs, task.query.y, reduction="mean")
