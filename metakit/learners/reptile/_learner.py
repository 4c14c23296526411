"""The learner of Reptile: a model and its inner loop."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import Array

from metakit import losses
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter, trainable
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import Inputs
from metakit.inner import AbstractSolver, check_steps, select as selection
from metakit.learners._minibatches import check_batch_size
from metakit.learners._network import check_instance, check_loss, check_model, not_statistics

_NORM_POLICIES = ("transductive", "inductive", "one_by_one")


class Reptile(eqx.Module):
    r"""An initialisation near the solutions of all tasks, found without a second derivative.

    $$\phi_0 = \theta, \qquad \phi_{j+1} = u\bigl(\nabla L_{B_j}(\phi_j)\bigr), \qquad
      \theta \leftarrow \theta + \varepsilon\,\frac1T \sum_{\text{tasks}} (\phi_k - \theta)$$

    The minibatches $B_j$ cycle without replacement through the shuffled support set. The outer update is a step of
    `optax.sgd` of rate $\varepsilon$ along the gradient of `meta_loss`, so the common training step serves it;
    `optax.linear_schedule(1.0, 0.0, num_steps)` is the published rate.

    **Arguments:**

    - `model`: any Equinox module with `model(x: [n, *in]) -> [n, *out]` on one batch.
    - `inner`: the update rule $u$, any of `mk.inner`; it starts afresh for every task, unless there is a `state`. The
      published one is `mk.inner.Optax(optax.adam, learning_rate=1e-3, b1=0.0, eps_root=1e-16)`. Its numbers must be
      fixed: Reptile moves weights, and a rate would get no gradient.
    - `num_steps`: inner steps $k$, static, at least 0. Test with more than you train with: `with_num_steps` and
      `with_batch_size`.
    - `batch_size`: examples in a minibatch; `None`, the default, is the whole support set at every step. A batch may
      reach from the end of one shuffled order into the next; one of more examples than there are repeats them.
    - `loss`: an `mk.losses` function, or your own `loss(outputs, targets, *, reduction)`; default `cross_entropy`.
    - `select`: which leaves move, a filter of `mk.inner.select`; default all. Others get a gradient of zero and stay.
    - `norm_policy`: whose statistics batch norm uses at prediction. Training steps use their minibatch's own.
        - `"transductive"` (default): the query batch's, so predictions depend on one another.
        - `"inductive"`: the support set's, under the adapted weights.
        - `"one_by_one"`: each query joins the support set alone, as in the published figures that are not
          transductive. One forward pass of the support set for each query.

        Name the policy beside every accuracy you report.
    - `state`: the solver's state that every task starts from; default `None`, afresh. `with_carried_state` makes one.

    **Raises:** `ValueError` for a negative `num_steps`, a `batch_size` below 1, an unknown `norm_policy`, a learned
    number in `inner` or in `loss`, a filter that selects nothing, or a model with Equinox state; `TypeError` for a
    model or a loss that cannot be called, or an `inner` that is no solver.

    **Source:** Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms", algorithms 1 and 2,
    https://arxiv.org/abs/1803.02999, and its code, https://github.com/openai/supervised-reptile. There Adam's second
    moments live on from task to task in training: `with_carried_state`. Its FOML variant, which moves by the last
    minibatch's step alone, is not here; `mk.maml.fomaml` is its close relative.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=5, loss=mk.losses.squared_error)
    >>> learner.num_steps
    5
    """

    model: Any
    inner: AbstractSolver
    num_steps: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    loss: Callable[..., Array] = eqx.field(converter=as_node)
    select: Callable[[Any], Any] = eqx.field(static=True)
    norm_policy: Literal["transductive", "inductive", "one_by_one"] = eqx.field(static=True)
    state: Any

    def __init__(
        self,
        model: Any,
        *,
        inner: AbstractSolver,
        num_steps: int,
        batch_size: int | None = None,
        loss: Callable[..., Array] = losses.cross_entropy,
        select: Callable[[Any], Any] = selection.everything,
        norm_policy: str = "transductive",
        state: Any = None,
    ):
        check_model(model)
        check_loss(loss)
        check_instance("inner", inner, AbstractSolver, "mk.inner.SGD(0.4)")
        check_steps(inner, num_steps)
        check_batch_size(batch_size)
        require_option("norm_policy", norm_policy, _NORM_POLICIES)
        selection.partition(model, select)  # for its errors
        _require_fixed(inner)
        if any(jax.tree.leaves(trainable(loss))):
            raise ValueError(
                "loss has weights of its own, but Reptile's update moves the model's only and would leave them where "
                "they are. Put them into mk.fixed; mk.maml learns a loss (with query_loss=...)."
            )
        self.model = model
        self.inner = inner
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.loss = loss
        self.select = select
        self.norm_policy = norm_policy  # pyright: ignore[reportAttributeAccessIssue]
        self.state = state


class Adapted(eqx.Module):
    """A model adapted to one task, ready for `predict`.

    - `model`: the model after the last inner step; under the inductive policy with the support's statistics.
    - `support`: the support inputs where the policy is `"one_by_one"`, else `None`.
    - `way`: how many classes the support set's labels counted from, `None` for regression.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=2, loss=mk.losses.squared_error)
    >>> mk.reptile.adapt(learner, mk.tasks.Sinusoid()(jax.random.key(1)).support).way is None
    True
    """

    model: Any
    support: Inputs | None
    way: int | None = eqx.field(static=True)


@typed
def with_num_steps(learner: Reptile, num_steps: int) -> Reptile:
    """The same learner with another number of inner steps, for evaluation at more than training took (published: 50).

    **Arguments:** `learner`; `num_steps`, static, at least 0.

    **Returns:** a new learner.

    **Raises:** `ValueError` for a negative number, or more than the solver has rates for.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=5, batch_size=10)
    >>> mk.reptile.with_num_steps(learner, 50).num_steps
    50
    """
    return dataclasses.replace(learner, num_steps=num_steps)


@typed
def with_batch_size(learner: Reptile, batch_size: int | None) -> Reptile:
    """The same learner with other minibatches, for evaluation with fewer shots than training had.

    **Arguments:** `learner`; `batch_size`, as in `Reptile` (published tests with 5 classes: 5 at 1 shot, 15 at 5).

    **Returns:** a new learner.

    **Raises:** `ValueError` for a batch size below 1.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.SGD(0.01), num_steps=5, batch_size=10)
    >>> mk.reptile.with_batch_size(learner, 5).batch_size
    5
    """
    return dataclasses.replace(learner, batch_size=batch_size)


@typed
def with_carried_state(learner: Reptile) -> Reptile:
    r"""The same learner, whose solver goes on from task to task where it would start afresh, as in the released code.

    The solver's state $s$ becomes a part of the learner that training moves as it moves the weights,

    $$s \leftarrow s + \varepsilon\,\frac1T \sum_{\text{tasks}} (s_k - s)$$

    and every task, in evaluation as well, starts from it. The released code runs the tasks of a step one after
    another, each from the state that the last one left.

    **Arguments:** `learner`, whose solver has a state without a counter of steps, such as
    `mk.inner.Optax(optax.rmsprop, learning_rate=1e-3, decay=0.999, initial_scale=1e-4)`. Adam with $\beta_1 = 0$ is
    that with a correction for a state that starts at zero, which a state that lives on no longer needs; in its place
    `initial_scale` is the square of a typical gradient.

    **Returns:** a new learner.

    **Raises:** `ValueError` for a solver without a state, or with a counter in it (Adam).

    >>> import jax, optax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.reptile.Reptile(model, inner=mk.inner.Momentum(0.01, 0.9), num_steps=5)
    >>> mk.reptile.with_carried_state(learner).state.head.weight.shape
    (8, 1)
    """
    state = learner.inner.init(moving_parts(learner)[0])
    arrays = [leaf for leaf in jax.tree.leaves(state) if eqx.is_array(leaf)]
    if not arrays:
        raise ValueError(f"{type(learner.inner).__name__} keeps no state, so there is nothing to carry over.")
    for leaf in arrays:
        if not eqx.is_inexact_array(leaf):
            raise ValueError(
                f"the state of {type(learner.inner).__name__} holds {leaf.dtype}{list(leaf.shape)}, a counter of "
                "steps, which has no direction to move in. Use a solver without one: in place of Adam, "
                "mk.inner.Optax(optax.rmsprop, learning_rate=1e-3, decay=0.999, initial_scale=1e-4)."
            )
    return dataclasses.replace(learner, state=state)


def moving(learner: Reptile) -> selection.Filter:
    """Which leaves of its model the inner loop moves."""
    return selection.intersection(learner.select, not_statistics)


def moving_parts(learner: Reptile) -> tuple[Any, Any]:
    """Those leaves, and the rest of the model."""
    return selection.partition(learner.model, moving(learner))


def _require_fixed(inner: AbstractSolver) -> None:
    is_number = lambda node: isinstance(node, Hyperparameter)  # noqa: E731
    for path, node in jax.tree.leaves_with_path(inner, is_leaf=is_number):
        if is_number(node) and node.learned:
            raise ValueError(
                f"inner{jax.tree_util.keystr(path)} is learned, but Reptile's update moves weights only and would "
                "leave it where it is. Give a plain number or mk.fixed(...); mk.maml learns inner rates."
            )
