"""MAML's three functions, and what can be reported beside them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._episode import Episode, Examples
from metakit._typecheck import typed
from metakit._types import Inputs, PRNGKey, Scalar
from metakit.inner import Auto, Choice, choose_adjoint as choose_for_loop, problem
from metakit.learners._network import check_way

from ._inner_loop import InnerData, adapting, evaluation_model, inner_data, inner_loss, query_loss, solve
from ._learner import MAML, Adapted, with_num_steps


@typed
def adapt(learner: MAML, support: Examples, key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task: `num_steps` inner steps from the learned initialisation on the support set.

    $$\theta_{t+1} = \theta_t - \alpha \nabla_\theta L_S(\theta_t)$$

    **Arguments:**

    - `learner`: a `MAML`.
    - `support`: the support set of one task.
    - `key`: not used.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when the model's outputs do not fit the labels, or labels are needed and absent.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.adapt(learner, episode.support).model.head.weight.shape
    (8, 1)
    """
    del key
    model, _, _ = solve(learner, support)
    return Adapted(evaluation_model(learner, model, support.x, _last_step(learner)), support.way)


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
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.predict(mk.maml.adapt(learner, episode.support), episode.query.x).shape
    (10, 1)
    """
    del key
    outputs = adapted.model(x)
    check_way(outputs, adapted.way)
    return outputs


@typed
def meta_loss(learner: MAML, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""How well the model does on the query set after adapting to the support set.

    $$L_Q(\theta_K) \quad\text{or, with step weights,}\quad \sum_{t=1}^{K} w_t L_Q(\theta_t)$$

    **Arguments:**

    - `learner`: a `MAML`.
    - `task`: one episode.
    - `key`: not used.

    **Returns:** a scalar, the mean over the query examples. Its gradient with respect to `learner` is exact, unless
    the learner's adjoint says otherwise.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.meta_loss(learner, episode).shape
    ()
    """
    del key
    if learner.step_weights is None:
        model, _, _ = solve(learner, task.support)
        return query_loss(learner, model, task, _last_step(learner))

    def observe(model: Any, data: InnerData, step: Array) -> Scalar:
        assert data.query is not None
        return query_loss(data.learner, model, Episode(data.support, data.query), step)

    _, solution, _ = solve(learner, task.support, task.query, observe=observe)
    weights = learner.step_weights.value.astype(solution.observed.dtype)
    return jnp.sum(weights * solution.observed)


class Diagnostics(eqx.Module):
    """What the inner loop did on one task.

    - `inner_losses`: `[num_steps + 1]`, the support loss before each step and after the last.
    - `query_loss_before`, `query_loss_after`: the query loss of the model as learned, and as adapted.
    - `residual`: the norm of the inner loss's gradient after the last step, from `mk.inner.Implicit`, whose gradient is
      exact where it is 0; `None` from other adjoints.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.diagnostics(learner, episode).query_loss_after.shape
    ()
    """

    inner_losses: Float[Array, " steps_and_end"]
    query_loss_before: Scalar
    query_loss_after: Scalar
    residual: Scalar | None = None


@typed
def diagnostics(learner: MAML, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """The losses along the inner loop of one task.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`. The losses before each step come with the inner gradients and cost nothing extra.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.diagnostics(learner, episode).inner_losses.shape
    (3,)
    """
    del key
    model, solution, data = solve(learner, task.support)
    last = _last_step(learner)
    return Diagnostics(
        inner_losses=jnp.append(solution.losses, inner_loss(model, data, last)),
        query_loss_before=query_loss(learner, learner.model, task, jnp.zeros((), jnp.int32)),
        query_loss_after=query_loss(learner, model, task, last),
        residual=solution.residual,
    )


@typed
def choose_adjoint(learner: MAML, support: Examples, *, memory_limit: int = Auto().memory_limit) -> Choice:
    """Which adjoint `adjoint="auto"` uses for this learner and a support set of this size, and why.

    **Arguments:** `learner`, whatever its own adjoint; `support`, of which only the shapes matter; `memory_limit`, the
    bytes that the backward pass of one task may keep, default 1 GiB.

    **Returns:** an `mk.inner.Choice`.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=50, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.choose_adjoint(learner, episode.support).reason[:43]
    '50 steps of SGD on 25 parameters: MixedMode'
    """
    data = inner_data(learner, support)
    objective, params, args = problem(inner_loss, learner.model, data, select=adapting(learner))
    return choose_for_loop(objective, learner.inner, params, args, learner.num_steps, memory_limit=memory_limit)


@typed
def path(learner: MAML, support: Examples, key: PRNGKey | None = None, *, num_steps: int) -> Adapted:
    """The model after 0, 1, ..., `num_steps` inner steps, for evaluation at every number of steps in one call.

    `eqx.filter_vmap(predict, in_axes=(eqx.if_array(0), None))(path(learner, support, num_steps=10), query.x)` gives the
    predictions after every number of steps.

    **Arguments:**

    - `learner`, `support`, `key`: as `adapt`.
    - `num_steps`: static; may be more than the learner was trained with.

    **Returns:** an `Adapted` with a leading axis `[num_steps + 1]` on every array; entry `t` is what `adapt` gives with
    `t` steps.

    **Raises:** `ValueError` as `adapt`, and when the solver has no rates for so many steps.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> episode = mk.tasks.Sinusoid()(jax.random.key(1))
    >>> mk.maml.path(learner, episode.support, num_steps=10).model.head.weight.shape
    (11, 8, 1)
    """
    del key
    longer = with_num_steps(learner, num_steps)

    def observe(model: Any, data: InnerData, step: Array) -> Any:
        return eqx.filter(evaluation_model(data.learner, model, data.support.x, step), eqx.is_array)

    _, solution, _ = solve(longer, support, observe=observe)
    start = evaluation_model(longer, longer.model, support.x, jnp.zeros((), jnp.int32))
    arrays, static = eqx.partition(start, eqx.is_array)
    stacked = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), arrays, solution.observed)
    return Adapted(eqx.combine(stacked, static), support.way)


def _last_step(learner: MAML) -> Array:
    # The query set sees the per-step norm of the last support step, as in the released MAML++.
    return jnp.asarray(max(learner.num_steps - 1, 0), jnp.int32)
