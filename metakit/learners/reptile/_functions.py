"""Reptile's three functions, and what can be reported beside them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._episode import Episode, Examples
from metakit._hyperparameter import held
from metakit._tree import global_norm
from metakit._typecheck import typed
from metakit._types import Inputs, PRNGKey, Scalar
from metakit.learners._network import check_targets, check_way

from ._inner_loop import adapted_model, one_by_one, solve, zero_with_gradient
from ._learner import Adapted, Reptile, moving_parts


@typed
def adapt(learner: Reptile, support: Examples, key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task: `num_steps` steps of ordinary training from the learned initialisation.

    $$\phi_{j+1} = u\bigl(\nabla L_{B_j}(\phi_j)\bigr), \qquad j = 0, \dots, k - 1$$

    **Arguments:**

    - `learner`: a `Reptile`.
    - `support`: the support set of one task.
    - `key`: shuffles the support set into minibatches; not used where `batch_size` is `None`.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when the model's outputs do not fit the labels, when labels are needed and absent, or when
    minibatches are asked for without a key.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> mk.reptile.adapt(learner, mk.tasks.Sinusoid()(jax.random.key(1)).support).model.head.weight.shape
    (8, 1)
    """
    model, _ = solve(learner, support, key)
    return adapted_model(learner, model, support)


@typed
def predict(adapted: Adapted, x: Inputs, key: PRNGKey | None = None) -> Float[Array, "n *out"]:
    """The adapted model's outputs: logits `[n, way]` for classes, `[n, *out]` for values.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: query inputs `[n, *in]`, or several of them as the support set has. Under the transductive policy batch norm
      takes its statistics from these `n` examples, so give it the whole query set at once.
    - `key`: not used.

    **Returns:** `[n, *out]`.

    **Raises:** `ValueError` when the model does not give one logit per class, or when `x` and the support differ in the
    shape or dtype of an example under the one-by-one policy.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.reptile.predict(mk.reptile.adapt(learner, episode.support), episode.query.x).shape
    (10, 1)
    """
    del key
    outputs = adapted.model(x) if adapted.support is None else one_by_one(adapted.model, adapted.support, x)
    check_way(outputs, adapted.way)
    return outputs


@typed
def meta_loss(learner: Reptile, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""The loss after adaptation, with Reptile's update in place of its gradient.

    $$\text{value } L_Q(\phi_k), \qquad \text{gradient } \theta - \phi_k$$

    Reptile descends no loss, so this is a surrogate: the value is what other learners report, the mean query loss of
    the adapted model, and the *gradient* is the direction from the adapted weights to the initialisation, exactly. The
    two do not belong together: do not line-search on it, and do not add a penalty to it.

    The query set only measures; the weights learn from the support set alone. So sample many shots and few queries
    (published: 10 or 15 shots for 1- and 5-shot tests).

    **Arguments:**

    - `learner`: a `Reptile`.
    - `task`: one episode.
    - `key`: shuffles the support set into minibatches; not used where `batch_size` is `None`.

    **Returns:** a scalar, the mean over the query examples. Its gradient is $\theta - \phi_k$ for the leaves that
    `select` picks and zero for all others.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> gradient = jax.grad(mk.reptile.meta_loss)(learner, episode)
    >>> adapted = mk.reptile.adapt(learner, episode.support)
    >>> bool((gradient.model.head.bias == model.head.bias - adapted.model.head.bias).all())
    True
    """
    check_targets(learner.loss, task.query, "query")
    still = held(learner)
    model, solution = solve(still, task.support, key)
    adapted = adapted_model(still, model, task.support)
    value = still.loss(predict(adapted, task.query.x), task.query.y, reduction="mean")
    start, end = moving_parts(learner)[0], solution.params
    if learner.state is not None:
        start, end = (start, learner.state), (end, solution.state)
    return value + zero_with_gradient(start, end).astype(value.dtype)


class Diagnostics(eqx.Module):
    """What the inner loop did on one task.

    - `inner_losses`: `[num_steps]`, the loss of each step's minibatch before that step.
    - `distance`: Euclidean distance from the initialisation to the adapted weights.
    - `query_loss_before`, `query_loss_after`: the query loss of the model as learned, and as adapted.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> mk.reptile.diagnostics(learner, mk.tasks.Sinusoid()(jax.random.key(1))).inner_losses.shape
    (2,)
    """

    inner_losses: Float[Array, " num_steps"]
    distance: Scalar
    query_loss_before: Scalar
    query_loss_after: Scalar


@typed
def diagnostics(learner: Reptile, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """The losses along the inner loop of one task, and how far it went.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> mk.reptile.diagnostics(learner, mk.tasks.Sinusoid()(jax.random.key(1))).distance.shape
    ()
    """
    check_targets(learner.loss, task.query, "query")
    model, solution = solve(learner, task.support, key)
    start, _ = moving_parts(learner)

    def query_loss(model: Any) -> Scalar:
        adapted = adapted_model(learner, model, task.support)
        return learner.loss(predict(adapted, task.query.x), task.query.y, reduction="mean")

    return Diagnostics(
        inner_losses=solution.losses,
        distance=global_norm(jax.tree.map(jnp.subtract, start, solution.params)),
        query_loss_before=query_loss(learner.model),
        query_loss_after=query_loss(model),
    )
