"""The linear baseline: values that are fitted to the very episodes they are subtracted from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import typed
from metakit._types import Scalar

from ._advantages import discounted_returns
from ._trajectories import Trajectories


@typed
def baseline_features(
    observations: Float[Array, "episodes horizon *observation"],
) -> Float[Array, "episodes horizon features"]:
    r"""What the linear baseline reads at each step.

    $$\phi(o, t) = \bigl(o,\ o^2,\ \tau,\ \tau^2,\ \tau^3,\ 1\bigr), \qquad \tau = t / 100$$

    with $o$ flattened and clipped to $[-10, 10]$, and $t$ counted from 0 in each episode.

    **Arguments:** `observations`, `[episodes, horizon, *observation]`.

    **Returns:** `[episodes, horizon, 2 d + 4]` for observations of `d` numbers.

    **Source:** Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control",
    https://arxiv.org/abs/1604.06778, and its code (rllab's `LinearFeatureBaseline`), which MAML's uses.

    >>> import jax.numpy as jnp
    >>> [f"{float(x):g}" for x in baseline_features(jnp.full((1, 2, 1), 20.0))[0, 1]]
    ['10', '100', '0.01', '0.0001', '1e-06', '1']
    """
    episodes, horizon = observations.shape[:2]
    o = jnp.clip(observations.reshape(episodes, horizon, -1), -10, 10)
    time = jnp.arange(horizon, dtype=o.dtype)[None, :, None] / 100
    time = jnp.broadcast_to(time, (episodes, horizon, 1))
    return jnp.concatenate([o, o * o, time, time**2, time**3, jnp.ones_like(time)], axis=2)


@typed
def linear_baseline(trajectories: Trajectories, discount: Scalar, penalty: Scalar) -> Float[Array, "episodes horizon"]:
    r"""The values of a linear baseline fitted to these episodes' own discounted returns.

    $$w = \arg\min_w \sum_t (\phi_t^\top w - G_t)^2 + \lambda \lVert w \rVert^2, \qquad V_t = \phi_t^\top w$$

    over the steps that took place. It is fitted anew for every task and every update, and on the same data that it is
    subtracted from, as published: that biases the gradient a little and needs no other episodes.

    **Arguments:**

    - `trajectories`: of one task.
    - `discount`: $\gamma$ of the returns.
    - `penalty`: $\lambda$, above 0; published 1e-5.

    **Returns:** $V_t$, `[episodes, horizon]`; 0 where the step did not take place.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> policy = mk.rl.CategoricalPolicy(mk.nn.Linear(1, 2, key=jax.random.key(0)))
    >>> bandit = mk.tasks.Bandits(2)(jax.random.key(1))
    >>> episodes = mk.rl.rollout(policy, bandit, jax.random.key(2), num_episodes=100)
    >>> values = mk.rl.linear_baseline(episodes, jnp.array(0.99), jnp.array(1e-5))
    >>> bool(abs(values[0, 0] - episodes.rewards.mean()) < 1e-4)  # nothing to see but the mean
    True
    """
    mask = trajectories.mask
    returns = jax.vmap(discounted_returns, in_axes=(0, 0, None))(trajectories.rewards, mask, discount)
    features = baseline_features(trajectories.observations)
    features = jnp.where(mask[:, :, None], features, jnp.zeros_like(features))
    size = features.shape[2]
    ridge = jnp.sqrt(penalty).astype(features.dtype) * jnp.eye(size, dtype=features.dtype)
    rows = jnp.concatenate([features.reshape(-1, size), ridge])
    targets = jnp.concatenate([returns.reshape(-1), jnp.zeros((size,), returns.dtype)])
    fitted = (targets - _residual(rows, targets))[:-size].reshape(returns.shape)
    return jnp.where(mask, fitted, jnp.zeros_like(fitted))


def _residual(rows: Float[Array, "n k"], targets: Float[Array, " n"]) -> Float[Array, " n"]:
    """What least squares leaves of the targets, by modified Gram-Schmidt on the columns.

    With the penalty as rows of the problem: the normal equations would square the condition number, and in 32 bits 1e-5
    vanishes beside thousands of steps, so that constant observations were singular. Not `jnp.linalg.qr`: several of
    them, batched, in one program waited for each other for ever on a CPU of two cores (JAX 0.10.2).
    """

    def step(carry: tuple[Array, Array], column: Array) -> tuple[tuple[Array, Array], None]:
        rest, targets = carry
        direction = rest[:, column]
        direction = direction / jnp.sqrt(jnp.sum(direction * direction))
        rest = rest - direction[:, None] * (direction @ rest)[None]
        return (rest, targets - direction * (direction @ targets)), None

    (_, residual), _ = jax.lax.scan(step, (rows, targets), jnp.arange(rows.shape[1]))
    return residual
