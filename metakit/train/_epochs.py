"""Several gradient steps on the same data: proximal policy optimisation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from metakit._compile import compiled
from metakit._typecheck import typed

from ._acting import begin, mean_over_tasks
from ._state import TrainState, require_unused
from ._step import StepDiagnostics, choose, take_step


class EpochsDetails(eqx.Module):
    """What `Epochs` reports beside the loss.

    - `divergence`: from the learner that collected the data to the one after the last epoch, by the algorithm's own
      `divergence`, a mean over tasks.

    >>> import jax.numpy as jnp
    >>> float(EpochsDetails(jnp.zeros(())).divergence)
    0.0
    """

    divergence: Float[Array, "*steps"]


class Epochs(eqx.Module):
    r"""A step that acts once and then takes several gradient steps on what was collected.

    $$D_t \sim \theta_\text{old}, \qquad \theta \leftarrow \theta + \mathrm{update}\Bigl(\nabla_\theta \frac1T \sum_t
    \ell(\theta, D_t)\Bigr) \quad \text{repeatedly}$$

    It is called like `step` and can stand in its place: `mk.train.run_steps(..., rule=mk.train.Epochs(4))`. With a
    clipped loss it is PPO; with a loss that is only right for fresh data, it is wrong.

    **Arguments:** `num_epochs`, gradient steps on one batch of data, at least 1, static.

    **Returns** (of a call): as `step`. The loss and the gradient's norm are those of the first epoch; `details` is an
    `EpochsDetails`. `state.step` counts calls, the optimiser's own count epochs. If any epoch is not finite, the state
    comes back unchanged.

    **Raises:** `ValueError` for `num_epochs` below 1; of a call, `TypeError` for an algorithm without `collect` and
    `divergence`, and what `step` raises.

    **Source:** Schulman et al. 2017, "Proximal Policy Optimization Algorithms", algorithm 1,
    https://arxiv.org/abs/1707.06347. Each epoch is one step on all the data; there are no minibatches.

    >>> import jax, optax, metakit as mk
    >>> policy = mk.rl_squared.gru_policy((1,), mk.Discrete(2), 4, key=jax.random.key(0))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=3)
    >>> optimiser = optax.adam(1e-2)
    >>> state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    >>> tasks = mk.train.draw_tasks(mk.tasks.Bandits(2), state, meta_batch=4)
    >>> state, diagnostics = mk.train.Epochs(3)(mk.rl_squared, optimiser, state, tasks)
    >>> int(state.step), bool(diagnostics.details.divergence > 0)
    (1, True)
    """

    num_epochs: int = eqx.field(static=True)

    def __init__(self, num_epochs: int = 4):
        if isinstance(num_epochs, bool) or num_epochs < 1:
            raise ValueError(f"num_epochs is the gradient steps on one batch and must be at least 1, got {num_epochs}.")
        self.num_epochs = num_epochs

    @typed
    def __call__(
        self,
        algorithm: Any,
        optimiser: optax.GradientTransformation,
        state: TrainState,
        tasks: Any,
        *,
        mesh: Mesh | None = None,
        chunk: Any = "auto",
        anneal: Callable[[Any, Any], Any] | None = None,
    ) -> tuple[TrainState, StepDiagnostics]:
        require_unused(state)
        return _jit_epochs(self, algorithm, optimiser, state, tasks, mesh, chunk, anneal)


@compiled
def _jit_epochs(rule, algorithm, optimiser, state, tasks, mesh, chunk, anneal):
    learner, data = begin(algorithm, state, tasks, mesh, chunk, anneal, "Epochs")
    start = eqx.tree_at(lambda s: s.learner, state, learner)
    arrays, static = eqx.partition(start, eqx.is_array)

    def epoch(arrays, _):
        state, diagnostics = take_step(algorithm, optimiser, eqx.combine(arrays, static), data, mesh, chunk, None)
        return eqx.filter(state, eqx.is_array), diagnostics

    arrays, diagnostics = jax.lax.scan(epoch, arrays, None, length=rule.num_epochs)
    new = eqx.combine(arrays, static)
    new = TrainState(new.learner, new.opt_state, state.step + jnp.ones_like(state.step), state.key, state.moves)
    divergence = mean_over_tasks(eqx.Partial(algorithm.divergence, new.learner), data, mesh, chunk)
    finite = jnp.all(diagnostics.finite) & jnp.isfinite(divergence)
    first = diagnostics.loss[0], diagnostics.gradient_norm[0]
    return choose(finite, new, state), StepDiagnostics(*first, finite, EpochsDetails(divergence))
