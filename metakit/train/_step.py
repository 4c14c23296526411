"""One training step, and many of them in one compiled call."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from metakit import random
from metakit._algorithm import require_sampler
from metakit._compile import compiled
from metakit._tree import all_finite, global_norm, is_key
from metakit._typecheck import typed
from metakit.sharding import meta_gradient, num_tasks, replicate

from ._draw import step_keys, steps_ahead, tasks_of_steps
from ._errors import NonFiniteLossError, require_positive
from ._state import TrainState, others_promotion, require_one, require_unused


class StepDiagnostics(eqx.Module):
    """What a step reports; `run_steps` stacks them along a leading axis.

    **Arguments:**

    - `loss`: the mean meta-loss over the step's tasks, *before* the update.
    - `gradient_norm`: Euclidean norm of the meta-gradient over trainable leaves, before any clipping.
    - `finite`: whether loss, gradient and updated learner are all finite. If not, the step was not applied.
    - `details`: what another kind of step (`TrustRegion`, `Epochs`) reports beside these; `None` for `step`.

    >>> import jax.numpy as jnp
    >>> StepDiagnostics(jnp.zeros(3), jnp.zeros(3), jnp.ones(3, bool)).loss.shape
    (3,)
    """

    loss: Float[Array, "*steps"]
    gradient_norm: Float[Array, "*steps"]
    finite: Bool[Array, "*steps"]
    details: Any = None


def take_step(
    algorithm: Any, optimiser: Any, state: TrainState, tasks: Any, mesh: Any, chunk: Any, anneal: Any
) -> tuple[TrainState, StepDiagnostics]:
    learner = state.learner if anneal is None else annealed(anneal, state)
    keys = random.task_keys(step_keys(state)[1], 0, num_tasks(tasks))
    result = meta_gradient(algorithm, learner, tasks, keys, trainable=state.mask, mesh=mesh, chunk=chunk)

    params, rest = eqx.partition(learner, state.mask)
    # Some optimisers (optax.contrib.reduce_on_plateau, line searches) read the loss; the others ignore it.
    update = optax.with_extra_args_support(optimiser).update
    with others_promotion():
        updates, opt_state = update(result.gradient, state.opt_state, params, value=result.loss)
    params = eqx.apply_updates(params, updates)

    norm = global_norm(result.gradient)
    finite = jnp.isfinite(result.loss) & jnp.isfinite(norm) & all_finite(params)
    new = TrainState(
        eqx.combine(params, rest), opt_state, state.step + jnp.ones_like(state.step), state.key, state.moves
    )
    return choose(finite, new, state), StepDiagnostics(result.loss, norm, finite)


def annealed(anneal: Callable[[Any, Any], Any], state: TrainState) -> Any:
    learner = anneal(state.learner, state.step)
    before, after = (_signature(tree) for tree in (state.learner, learner))
    if before != after:
        raise ValueError(
            "anneal(learner, step) must return a learner of the same structure, shapes and dtypes, got "
            f"{after} for {before}. Replace values with eqx.tree_at, in the dtype they had."
        )
    return learner


def _signature(tree: Any) -> Any:
    arrays = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    return jax.tree.structure(tree), arrays


def choose(finite: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The new state where the step was finite, the old one otherwise, bit for bit."""

    def pick(a: Any, b: Any) -> Any:
        return jnp.where(finite, a, b) if eqx.is_array(a) else a

    # The key never changes, and everything that is not an array is the same in both.
    arrays_new, static = eqx.partition(new, lambda leaf: eqx.is_array(leaf) and not is_key(leaf))
    arrays_old = eqx.filter(old, lambda leaf: eqx.is_array(leaf) and not is_key(leaf))
    return eqx.combine(jax.tree.map(pick, arrays_new, arrays_old), static)


@compiled
def _jit_step(algorithm, optimiser, state, tasks, mesh, chunk, anneal):
    return take_step(algorithm, optimiser, state, tasks, mesh, chunk, anneal)


@typed
def step(
    algorithm: Any,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    tasks: Any,
    *,
    mesh: Mesh | None = None,
    chunk: Any = "auto",
    anneal: Callable[[Any, Any], Any] | None = None,
) -> tuple[TrainState, StepDiagnostics]:
    r"""One outer step on a batch of tasks that you supply.

    $$g = \nabla_\theta \frac1T\sum_{t=1}^T \ell(\theta, \mathcal T_t, k_t), \qquad
      \theta \leftarrow \theta + \mathrm{update}(g)$$

    It is compiled, may be called inside `jit` or `scan`, and leaves its arguments intact. To run many steps,
    sampling on the device, use `run_steps`.

    **Arguments:**

    - `algorithm`: a module or `MetaLearner` with `adapt`, `predict` and `meta_loss`.
    - `optimiser`: the optax transformation given to `init`. Make it once: another object compiles again.
    - `state`: from `init` or the step before.
    - `tasks`: a batch of tasks, every array with a leading task axis.
    - `mesh`: devices to spread the tasks over; default none.
    - `chunk`: how many tasks of a device run at once, as in `mk.sharding.meta_gradient`.
    - `anneal`: `anneal(learner, step) -> learner`, applied before the gradient, for schedules of the
      learner's own numbers (MAML++'s per-step loss weights). Its result is what the step trains, so it is
      also what the state keeps.

    **Returns:** the next state and a `StepDiagnostics`. If the step is not finite, the state comes back
    unchanged and `diagnostics.finite` is `False`; here nothing raises, because reading the flag would wait
    for the device.

    **Raises:** `ValueError` or `TypeError` for tasks without a common leading axis, something that is no
    algorithm, a `chunk` below 1, a state that was used before or holds several trainings, or an
    `anneal` that changes the learner's structure.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> pull = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
    >>> optimiser = optax.sgd(1.0)
    >>> state = mk.train.init(jnp.zeros(()), optimiser, key=jax.random.key(0))
    >>> state, diagnostics = mk.train.step(pull, optimiser, state, jnp.asarray([1.0, 3.0]))
    >>> float(state.learner), float(diagnostics.loss)
    (2.0, 2.5)
    """
    require_unused(state)
    require_one(state)
    return _jit_step(algorithm, optimiser, state, tasks, mesh, chunk, anneal)


# Everything but the state comes first and in one tuple, since Equinox donates all arguments except the first.
@functools.partial(compiled, donate="all-except-first")
def _jit_run_steps(fixed, state):
    algorithm, optimiser, sampler, num_steps, meta_batch, mesh, chunk, anneal, rule = fixed
    arrays, static = eqx.partition(state, eqx.is_array)
    ahead = steps_ahead(sampler, state, num_steps, meta_batch)

    def some_steps(arrays, _):
        state = eqx.combine(arrays, static)
        tasks_of = tasks_of_steps(sampler, state, num_steps=ahead, meta_batch=meta_batch, mesh=mesh)

        def one_step(arrays, _):
            state = eqx.combine(arrays, static)
            # After a step that was not finite the state stays put, so the same step fails again: no flag to
            # carry.
            state, diagnostics = rule(
                algorithm, optimiser, state, tasks_of(state), mesh=mesh, chunk=chunk, anneal=anneal
            )
            return eqx.filter(state, eqx.is_array), diagnostics

        return jax.lax.scan(one_step, arrays, None, length=ahead)

    arrays, diagnostics = jax.lax.scan(some_steps, arrays, None, length=num_steps // ahead)
    diagnostics = jax.tree.map(lambda leaf: leaf.reshape(num_steps, *leaf.shape[2:]), diagnostics)
    return eqx.combine(arrays, static), diagnostics


@typed
def run_steps(
    algorithm: Any,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    sampler: Callable[..., Any],
    *,
    num_steps: int,
    meta_batch: int,
    mesh: Mesh | None = None,
    chunk: Any = "auto",
    anneal: Callable[[Any, Any], Any] | None = None,
    rule: Callable[..., Any] = step,
) -> tuple[TrainState, StepDiagnostics]:
    r"""Many steps in one compiled call, drawing the tasks on the device.

    Task $t$ of step $s$ comes from a key folded from the run's key, $s$ and $t$ alone. So the learner does
    not depend on how steps are grouped into calls (of two or more, to the bit: XLA does away with a loop of one),
    and, up to rounding, on how many devices share the tasks.

    **Arguments:**

    - `algorithm`, `optimiser`, `mesh`, `chunk`, `anneal`: as in `step`.
    - `state`: from `init` or the call before. Its memory is donated: afterwards use the state that is
      returned.
    - `sampler`: `sampler(key) -> task`, pure and jittable, such as `mk.tasks.Sinusoid()` or
      `mk.tasks.Episodes(...)`.
    - `num_steps`: how many steps; at least 1. Another number compiles again.
    - `meta_batch`: tasks in each step; at least 1, and a multiple of the mesh's devices.
    - `rule`: what one step does, a function of the signature of `step`, which is the default; `TrustRegion()` and
      `Epochs(4)` are others.

    **Returns:** the state after `num_steps` steps, and `StepDiagnostics` with `[num_steps]` arrays.

    **Raises:** `NonFiniteLossError`, which carries the last good state, when a step is not finite (called
    inside your own `jit` it cannot: read `diagnostics.finite` there); `ValueError` for counts below 1,
    `TypeError` for a sampler's class in place of a sampler, and everything that `step` raises.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> pull = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
    >>> optimiser = optax.sgd(0.1)
    >>> state = mk.train.init(jnp.zeros(()), optimiser, key=jax.random.key(0))
    >>> state, diagnostics = mk.train.run_steps(
    ...     pull, optimiser, state, jax.random.normal, num_steps=5, meta_batch=4
    ... )
    >>> int(state.step), diagnostics.loss.shape
    (5, (5,))
    """
    require_positive("num_steps", num_steps, "how many steps to run")
    require_positive("meta_batch", meta_batch, "how many tasks one step averages over; 4 to 32 is usual")
    require_unused(state)
    require_one(state)
    require_sampler(sampler)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state))
    if mesh is not None and not traced:
        state, sampler = replicate(state, mesh), replicate(sampler, mesh)
    fixed = (algorithm, optimiser, sampler, num_steps, meta_batch, mesh, chunk, anneal, rule)
    state, diagnostics = _jit_run_steps(fixed, state)
    if not traced and not isinstance(diagnostics.finite, Tracer):
        _require_finite(state, diagnostics)
    return state, diagnostics


def _require_finite(state: TrainState, diagnostics: StepDiagnostics) -> None:
    finite = np.asarray(diagnostics.finite)
    if not finite.all():
        first = int(np.argmin(finite))
        loss, norm = float(diagnostics.loss[first]), float(diagnostics.gradient_norm[first])
        raise NonFiniteLossError(int(state.step), loss, norm, state)
