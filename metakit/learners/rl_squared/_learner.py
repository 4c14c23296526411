"""The learner of RL^2: a recurrent policy, and how it is trained."""

from typing import Literal, get_args

import equinox as eqx
from jaxtyping import ArrayLike

from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit.learners._options import fraction, not_negative, positive, require_sizes
from metakit.rl import AbstractRecurrentPolicy

Objective = Literal["a2c", "ppo"]


class RLSquared(eqx.Module):
    r"""RL^2: learning to reinforcement-learn with the memory of a recurrent policy.

    A *trial* is `num_episodes` episodes in one environment that the policy does not know. Its memory is carried from
    each episode to the next and starts anew only with the trial, so what it learns about the environment it must
    keep there: adapting is remembering. It is trained to earn much over the whole trial,

    $$\max_\theta\ E \Bigl[ \sum_{t=0}^{T-1} \gamma^t r_t \Bigr], \qquad
      L = L_\pi + c_V \operatorname{mean}_t (V_t - \hat V_t)^2 - c_H \operatorname{mean}_t H(\pi_t)$$

    with $L_\pi$ the `"a2c"` or the `"ppo"` loss of advantages that look past the end of an episode to the end of the
    trial (`mk.rl.gae`), $\hat V_t = A_t + V_t$, and backpropagation through the whole trial.

    **Arguments:**

    - `policy`: an `mk.rl.AbstractRecurrentPolicy`, such as `gru_policy`.
    - `num_episodes`: episodes of a trial, at least 1, static. A pull of a bandit is an episode.
    - `objective`: `"ppo"` (the default), `mk.rl.clipped_surrogate`; or `"a2c"`, the logarithm of the probability times
      the advantage. On fresh data both have one gradient; only PPO's holds for several steps on the same trials
      (`mk.train.Epochs`).
    - `discount`: $\gamma$, from 0 to 1, a number or a `Hyperparameter`; default 0.99, from each step of the trial to
      the next.
    - `trace_decay`: $\lambda$, from 0 to 1; default 0.3, the published.
    - `clip`: $\epsilon$ of PPO, above 0; default 0.2.
    - `value_weight`, `entropy_weight`: $c_V$ and $c_H$, at least 0; default 0.5 and 0.01.

    **Raises:** `ValueError` for `num_episodes` below 1, an unknown objective, or a number that is not one; `TypeError`
    for a policy that is not recurrent.

    **Source:** Duan et al. 2016, "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning", section 2,
    https://arxiv.org/abs/1611.02779; at the same time Wang et al. 2016, "Learning to reinforcement learn",
    https://arxiv.org/abs/1611.05763, with A2C. The former has trust region steps (`mk.train.TrustRegion` takes them)
    and a second recurrent network for the values.

    >>> import jax, metakit as mk
    >>> policy = mk.rl_squared.gru_policy((1,), mk.Discrete(5), 8, key=jax.random.key(0))
    >>> mk.rl_squared.RLSquared(policy, num_episodes=10).objective
    'ppo'
    """

    policy: AbstractRecurrentPolicy
    num_episodes: int = eqx.field(static=True)
    objective: Objective = eqx.field(static=True)
    discount: Hyperparameter
    trace_decay: Hyperparameter
    clip: Hyperparameter
    value_weight: Hyperparameter
    entropy_weight: Hyperparameter

    def __init__(
        self,
        policy: AbstractRecurrentPolicy,
        *,
        num_episodes: int,
        objective: Objective = "ppo",
        discount: Hyperparameter | ArrayLike = 0.99,
        trace_decay: Hyperparameter | ArrayLike = 0.3,
        clip: Hyperparameter | ArrayLike = 0.2,
        value_weight: Hyperparameter | ArrayLike = 0.5,
        entropy_weight: Hyperparameter | ArrayLike = 0.01,
    ):
        if not isinstance(policy, AbstractRecurrentPolicy):
            raise TypeError(
                f"policy must be an mk.rl.AbstractRecurrentPolicy, got {type(policy).__name__}. "
                "mk.rl_squared.RecurrentPolicy makes one of a network over sequences."
            )
        require_sizes(num_episodes=num_episodes)
        require_option("objective", objective, get_args(Objective))
        self.policy = policy
        self.num_episodes = num_episodes
        self.objective = objective
        self.discount = fraction("discount", discount)
        self.trace_decay = fraction("trace_decay", trace_decay)
        self.clip = positive("clip", clip)
        self.value_weight = not_negative("value_weight", value_weight)
        self.entropy_weight = not_negative("entropy_weight", entropy_weight)
