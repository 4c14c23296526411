"""RL^2's three functions, and what trust regions and reports need beside them."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from metakit._environment import AbstractEnvironment
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.learners._acting import require_key, require_task
from metakit.rl import (
    AbstractDistribution,
    AbstractRecurrentPolicy,
    Token,
    Trajectories,
    as_data,
    clipped_surrogate,
    gae,
    masked_mean,
    policy_surrogate,
    read_trial,
    trial,
)

from ._learner import RLSquared


class Adapted(eqx.Module):
    """A policy with the memory of a trial so far.

    - `policy`: the learner's.
    - `state`: its memory.
    - `last`: what it will see of its last step.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> support = mk.rl_squared.collect(learner, bandit, jax.random.key(2)).trajectories
    >>> float(mk.rl_squared.adapt(learner, support).last.done)
    1.0
    """

    policy: AbstractRecurrentPolicy
    state: Any
    last: Token


class Trial(eqx.Module):
    """A trial that the learner went through, with what its loss needs of that time.

    **Arguments:** made by `collect`.

    - `trajectories`: the episodes, in order, `[episodes, horizon, ...]`.
    - `advantages`, `targets`: $A_t$ and $A_t + V_t$, `[episodes, horizon]`, by the values of that time.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> mk.rl_squared.collect(learner, bandit, jax.random.key(2)).advantages.shape
    (10, 1)
    """

    trajectories: Trajectories
    advantages: Float[Array, "episodes horizon"]
    targets: Float[Array, "episodes horizon"]


@typed
def adapt(learner: RLSquared, support: Trajectories, key: PRNGKey | None = None) -> Adapted:
    """Learn from the episodes of a trial so far: read them into the memory, from its beginning.

    **Arguments:**

    - `learner`: an `RLSquared`.
    - `support`: the first episodes of one trial, in order.
    - `key`: not used.

    **Returns:** an `Adapted` for `predict`. It depends on nothing but these episodes: no memory of other trials.

    **Raises:** `ValueError` when the observations or actions are not those the policy was built for (in compiled code
    an action out of range makes the memory NaN), or when there are more steps than the memory holds.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> support = mk.rl_squared.collect(learner, bandit, jax.random.key(2)).trajectories
    >>> mk.rl_squared.adapt(learner, support).state.shape
    (8,)
    """
    del key
    state, last, _, _ = read_trial(learner.policy, support, "support")
    return Adapted(learner.policy, state, last)


@typed
def predict(adapted: Adapted, x: Float[Array, "n *observation"], key: PRNGKey | None = None) -> AbstractDistribution:
    """What the policy would do next, for each of several observations.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: observations `[n, *observation]`, each an alternative for the next step of the trial.
    - `key`: not used.

    **Returns:** a distribution over actions of `n` entries.

    **Raises:** `ValueError` when the observations are not those the policy was built for, or the memory is full: it
    needs a place for this step, too (in compiled code the distribution is then NaN).

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> support = mk.rl_squared.collect(learner, bandit, jax.random.key(2)).trajectories
    >>> mk.rl_squared.predict(mk.rl_squared.adapt(learner, support), jnp.ones((3, 1))).logits.shape
    (3, 2)
    """
    del key

    def one(adapted: Adapted, observation: Array) -> AbstractDistribution:
        token = eqx.tree_at(lambda t: t.observation, adapted.last, observation)
        return adapted.policy.step(adapted.state, token)[1]

    return eqx.filter_vmap(one, in_axes=(None, 0))(adapted, x)


@typed
def collect(learner: RLSquared, task: AbstractEnvironment, key: PRNGKey | None = None) -> Trial:
    """Go through a trial.

    **Arguments:** `learner`; `task`, an environment; `key`, of everything random in it.

    **Returns:** a `Trial`, through which no gradient flows: a task for `meta_loss` that is already acted out.

    **Raises:** `ValueError` without a key, or as `mk.rl.trial`.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> mk.rl_squared.collect(learner, bandit, jax.random.key(2)).trajectories.rewards.shape
    (10, 1)
    """
    key = require_key(key, "rl_squared")
    learner = as_data(learner)
    trajectories, values = trial(learner.policy, task, key, num_episodes=learner.num_episodes)

    def whole(leaf: Array) -> Array:
        return leaf.reshape(-1)  # the episodes end to end, so that advantages look past the end of each

    advantages = gae(
        whole(trajectories.rewards),
        whole(values),
        whole(trajectories.mask),
        learner.discount.value.astype(values.dtype),
        learner.trace_decay.value.astype(values.dtype),
    ).reshape(values.shape)
    return as_data(Trial(trajectories, advantages, advantages + values))


@typed
def meta_loss(learner: RLSquared, task: AbstractEnvironment | Trial, key: PRNGKey | None = None) -> Scalar:
    r"""How well the policy does over a trial.

    $$L = L_\pi + c_V \operatorname{mean}_t (V_t - \hat V_t)^2 - c_H \operatorname{mean}_t H(\pi_t)$$

    Its value says little (the gradient is what is meant); `diagnostics` reports returns.

    **Arguments:**

    - `learner`: an `RLSquared`.
    - `task`: an environment, which is acted in; or a `Trial` from `collect`, which is taken as it is.
    - `key`: of everything random in acting; needed for an environment.

    **Returns:** a scalar. Its gradient is that of the loss above with the trial held fixed.

    **Raises:** `ValueError` without a key for an environment, as `mk.rl.trial`, or for a `Trial` as `mk.rl.read_trial`.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> mk.rl_squared.meta_loss(learner, bandit, jax.random.key(2)).shape
    ()
    """
    require_task(task, Trial, "rl_squared")
    data = task if isinstance(task, Trial) else collect(learner, task, key)
    _, _, distribution, values = read_trial(learner.policy, data.trajectories)
    acted, mask = data.trajectories, data.trajectories.mask
    log_probs = distribution.log_prob(acted.actions)
    if learner.objective == "ppo":
        clip = learner.clip.value.astype(values.dtype)
        policy_loss = clipped_surrogate(log_probs, acted.log_probs, data.advantages, mask, clip)
    else:
        policy_loss = policy_surrogate("logp", log_probs, acted.log_probs, data.advantages, mask)
    value_loss = masked_mean((values - data.targets) ** 2, mask)
    entropy = masked_mean(distribution.entropy(), mask)
    value_weight, entropy_weight = (
        weight.value.astype(values.dtype) for weight in (learner.value_weight, learner.entropy_weight)
    )
    return policy_loss + value_weight * value_loss - entropy_weight * entropy


@typed
def divergence(learner: RLSquared, data: Trial) -> Scalar:
    r"""How far the policy has moved from the one that went through the trial.

    $$\operatorname{mean}_t \mathrm{KL}\bigl(\pi_\text{old}(\cdot \mid x_{\le t}) \,\Vert\, \pi_\theta(\cdot \mid
    x_{\le t})\bigr)$$

    **Arguments:** `learner`; `data`, from `collect` with the old learner.

    **Returns:** a scalar, in nats a step. `mk.train.TrustRegion` keeps it small.

    **Raises:** `ValueError` as `mk.rl.read_trial`.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> trial = mk.rl_squared.collect(learner, bandit, jax.random.key(2))
    >>> bool(abs(mk.rl_squared.divergence(learner, trial)) < 1e-6)
    True
    """
    _, _, distribution, _ = read_trial(learner.policy, data.trajectories)
    return masked_mean(data.trajectories.behaviour.divergence(distribution), data.trajectories.mask)


class Diagnostics(eqx.Module):
    """How one trial went.

    - `returns`: `[num_episodes]`, the sum of rewards of each episode: rising, where the policy learns within the trial.
    - `entropy`: of the policy, nats, mean over the steps.
    - `value_error`: mean square of $V_t$ against its target.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> mk.rl_squared.diagnostics(learner, bandit, jax.random.key(2)).returns.shape
    (10,)
    """

    returns: Float[Array, " episodes"]
    entropy: Scalar
    value_error: Scalar


@typed
def diagnostics(learner: RLSquared, task: AbstractEnvironment | Trial, key: PRNGKey | None = None) -> Diagnostics:
    """The returns of a trial, and how sure and how right the policy was.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`.

    **Raises:** `ValueError` without a key for an environment, or as `mk.rl.trial`.

    >>> import jax, metakit as mk
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(0))
    >>> policy = mk.rl_squared.gru_policy((1,), bandit.actions, 8, key=jax.random.key(1))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=10)
    >>> mk.rl_squared.diagnostics(learner, bandit, jax.random.key(2)).entropy.shape
    ()
    """
    require_task(task, Trial, "rl_squared")
    data = task if isinstance(task, Trial) else collect(learner, task, key)
    acted = data.trajectories
    entropy = masked_mean(acted.behaviour.entropy(), acted.mask)
    return Diagnostics(acted.returns, entropy, masked_mean(data.advantages**2, acted.mask))
