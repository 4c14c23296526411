"""The three functions of MAML on policy gradients, and what trust regions and reports need beside them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._environment import AbstractEnvironment
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.learners._acting import require_key, require_task
from metakit.rl import (
    AbstractDistribution,
    Trajectories,
    as_data,
    clipped_surrogate,
    distributions,
    masked_mean,
    policy_surrogate,
    rollout,
)

from ._inner_loop import advantages, solve
from ._learner import RLMAML


class Adapted(eqx.Module):
    """A policy adapted to one task, ready for `predict`.

    - `policy`: after the last inner step.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> support = mk.rl_maml.collect(learner, bandit, jax.random.key(2)).support
    >>> type(mk.rl_maml.adapt(learner, support).policy).__name__
    'CategoricalPolicy'
    """

    policy: Callable[..., Any]


class Experience(eqx.Module):
    """The episodes of one task that the inner steps learn from, and those that judge the result.

    **Arguments:** made by `collect`.

    - `support`: for each inner step the `Trajectories` of the policy before it, a tuple of them.
    - `query`: those of the policy after the last.

    **Raises:** `TypeError` when one of them is none.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> experience = mk.rl_maml.collect(learner, bandit, jax.random.key(2))
    >>> len(experience.support), experience.query.rewards.shape
    (1, (20, 1))
    """

    support: tuple[Trajectories, ...]
    query: Trajectories

    def __check_init__(self):
        if not isinstance(self.support, tuple):
            raise TypeError(
                "support must be a tuple of mk.rl.Trajectories, one for each inner step, got "
                f"{type(self.support).__name__}. One batch is (batch,)."
            )
        for name, batch in [*((f"support[{i}]", batch) for i, batch in enumerate(self.support)), ("query", self.query)]:
            if not isinstance(batch, Trajectories):
                raise TypeError(f"{name} must be an mk.rl.Trajectories, got {type(batch).__name__}.")


@typed
def adapt(learner: RLMAML, support: Trajectories | tuple[Trajectories, ...], key: PRNGKey | None = None) -> Adapted:
    r"""Learn one task: an inner step on each batch of episodes.

    $$\theta_{t+1} = \theta_t - \alpha \nabla_\theta L(\theta_t; D_t)$$

    **Arguments:**

    - `learner`: an `RLMAML`.
    - `support`: episodes of the learner's own policy; or a tuple of several batches, each collected by the policy that
      the ones before it gave, for as many inner steps.
    - `key`: not used.

    **Returns:** an `Adapted` for `predict`.

    **Raises:** `ValueError` when the policy does not fit the observations, for batches of different shapes or dtypes,
    for more than the solver has rates for, or for actions that the policy cannot take. In compiled code, where nothing
    can raise, one out of range makes the policy NaN.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> support = mk.rl.rollout(learner.policy, bandit, jax.random.key(2), num_episodes=20)
    >>> mk.rl_maml.adapt(learner, support).policy.network.weight.shape
    (1, 2)
    """
    del key
    return Adapted(solve(learner, (support,) if isinstance(support, Trajectories) else support))


@typed
def predict(adapted: Adapted, x: Float[Array, "n *observation"], key: PRNGKey | None = None) -> AbstractDistribution:
    """The adapted policy's distributions over actions.

    **Arguments:** `adapted`, from `adapt`; `x`, observations `[n, *observation]`; `key`, not used.

    **Returns:** a distribution of `n` entries.

    **Raises:** `ValueError` when the policy does not fit the observations.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> mk.rl_maml.predict(mk.rl_maml.Adapted(policy), jnp.ones((3, 1))).logits.shape
    (3, 2)
    """
    del key
    return adapted.policy(x)


@typed
def collect(learner: RLMAML, task: AbstractEnvironment, key: PRNGKey | None = None) -> Experience:
    """Act, adapt, and act again: `num_episodes` before every inner step and after the last.

    **Arguments:** `learner`; `task`, an environment; `key`, of everything random in it.

    **Returns:** an `Experience`, through which no gradient flows: a task for `meta_loss` that is already acted out.

    **Raises:** `ValueError` without a key, or as `mk.rl.rollout`.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0), num_episodes=10)
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> mk.rl_maml.collect(learner, bandit, jax.random.key(2)).query.returns.shape
    (10,)
    """
    *support, query = _episodes(learner, task, require_key(key, "rl_maml"))
    return Experience(tuple(support), query)


@typed
def returns(learner: RLMAML, task: AbstractEnvironment, key: PRNGKey | None = None) -> Float[Array, " steps_and_end"]:
    """The mean return of the policy before every inner step and after the last.

    With `mk.evaluate.scores_of` it is the published evaluation: returns after 0, 1, ... updates.

    **Arguments:** as `collect`; `with_num_steps` chooses how many steps.

    **Returns:** `[num_steps + 1]`, each a mean over `num_episodes` episodes.

    **Raises:** as `collect`.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0), num_steps=3)
    >>> mk.rl_maml.returns(learner, mk.tasks.Bandits(2)(jax.random.key(1)), jax.random.key(2)).shape
    (4,)
    """
    episodes = _episodes(learner, task, require_key(key, "rl_maml"))
    return jnp.stack([jnp.mean(some.returns) for some in episodes])


def _episodes(learner: RLMAML, task: AbstractEnvironment, key: PRNGKey) -> list[Trajectories]:
    learner = as_data(learner)
    policy: Any = learner.policy
    episodes: list[Trajectories] = []
    for step_key in jax.random.split(key, learner.num_steps + 1):
        if episodes:
            # From the start each time: a solver's state and rates per step then need no thought, and steps are few.
            policy = solve(learner, tuple(episodes))
        episodes.append(rollout(policy, task, step_key, num_episodes=learner.num_episodes))
    return episodes


@typed
def meta_loss(learner: RLMAML, task: AbstractEnvironment | Experience, key: PRNGKey | None = None) -> Scalar:
    r"""How well the adapted policy does.

    $$L_\text{outer}(\theta_K; D_K) = -\operatorname{mean}_t \rho_t A_t, \qquad \rho_t = \frac{\pi_{\theta_K}(a_t
    \mid o_t)}{\pi_\text{old}(a_t \mid o_t)}$$

    or its clipped form. Its value says little (with standardised advantages it is zero); the gradient is what is
    meant, and `returns` and `diagnostics` report.

    **Arguments:**

    - `learner`: an `RLMAML`.
    - `task`: an environment, which is acted in; or an `Experience` from `collect`, which is taken as it is.
    - `key`: of everything random in acting; needed for an environment.

    **Returns:** a scalar. Its gradient, through the inner steps, is that of the loss above with all episodes held
    fixed.

    **Raises:** `ValueError` without a key for an environment, or as `adapt` and `mk.rl.rollout`.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> mk.rl_maml.meta_loss(learner, mk.tasks.Bandits(2)(jax.random.key(1)), jax.random.key(2)).shape
    ()
    """
    require_task(task, Experience, "rl_maml")
    data = task if isinstance(task, Experience) else collect(learner, task, key)
    query = data.query
    scaled = advantages(learner, query, "query")
    log_probs = distributions(solve(learner, data.support), query.observations).log_prob(query.actions)
    if learner.outer == "clipped":
        clip = learner.clip.value.astype(log_probs.dtype)
        return clipped_surrogate(log_probs, query.log_probs, scaled, query.mask, clip)
    return policy_surrogate("ratio", log_probs, query.log_probs, scaled, query.mask)


@typed
def divergence(learner: RLMAML, data: Experience) -> Scalar:
    r"""How far the adapted policy has moved from the one that collected the last episodes.

    $$\operatorname{mean}_t \mathrm{KL}\bigl(\pi_\text{old}(\cdot \mid o_t) \,\Vert\, \pi_{\theta_K}(\cdot \mid
    o_t)\bigr)$$

    **Arguments:** `learner`; `data`, from `collect` with the old learner.

    **Returns:** a scalar, in nats a step. `mk.train.TrustRegion` keeps it small.

    **Raises:** `ValueError` as `adapt`.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> data = mk.rl_maml.collect(learner, mk.tasks.Bandits(2)(jax.random.key(1)), jax.random.key(2))
    >>> bool(abs(mk.rl_maml.divergence(learner, data)) < 1e-6)
    True
    """
    now = distributions(solve(learner, data.support), data.query.observations)
    return masked_mean(data.query.behaviour.divergence(now), data.query.mask)


class Diagnostics(eqx.Module):
    """What adapting to one task did.

    - `return_before`, `return_after`: mean returns of the policy as learned, and as adapted.
    - `divergence`: mean Kullback-Leibler divergence from the policy before to the policy after, over the observations
      of the first episodes, nats a step: how far adapting moved it.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> mk.rl_maml.diagnostics(learner, mk.tasks.Bandits(2)(jax.random.key(1)), jax.random.key(2)).divergence.shape
    ()
    """

    return_before: Scalar
    return_after: Scalar
    divergence: Scalar


@typed
def diagnostics(learner: RLMAML, task: AbstractEnvironment | Experience, key: PRNGKey | None = None) -> Diagnostics:
    """Returns before and after adaptation, and how far it moved the policy.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`.

    **Raises:** `ValueError` without a key for an environment, or as `adapt` and `mk.rl.rollout`.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> learner = mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(1.0))
    >>> mk.rl_maml.diagnostics(learner, mk.tasks.Bandits(2)(jax.random.key(1)), jax.random.key(2)).return_after.shape
    ()
    """
    require_task(task, Experience, "rl_maml")
    data = task if isinstance(task, Experience) else collect(learner, task, key)
    first = (*data.support, data.query)[0]
    after = distributions(solve(learner, data.support), first.observations)
    moved = masked_mean(first.behaviour.divergence(after), first.mask)
    return Diagnostics(jnp.mean(first.returns), jnp.mean(data.query.returns), moved)
