"""Bernoulli bandits, and the best that any learner can do on them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from metakit._environment import AbstractEnvironment, Discrete, Transition, nan_unless
from metakit._tree import as_float_array
from metakit._typecheck import typed
from metakit._types import PRNGKey

# Beyond this many states the dynamic programme would take minutes and gigabytes.
_MOST_STATES = 500_000


class Bandit(AbstractEnvironment):
    r"""A bandit: each arm pays 1 with its own probability, else 0. An episode is one pull.

    $$r \sim \mathrm{Bernoulli}(p_a)$$

    There is nothing to observe; the observation is a constant 1, so that a linear network has one logit per arm.

    **Arguments:** `probabilities`, $p$, `[arms]`, each in `[0, 1]`.

    **Raises:** `ValueError` without an arm or for a probability outside `[0, 1]`; of `step`, for an action that is no
    arm. In compiled code, where nothing can raise, that action's reward is NaN.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> bandit = mk.tasks.Bandit([0.0, 1.0])
    >>> state, _ = bandit.reset(jax.random.key(0))
    >>> float(bandit.step(state, 1, jax.random.key(1)).reward)
    1.0

    **Source:** Duan et al. 2016, "RL^2", section 3.1, https://arxiv.org/abs/1611.02779
    """

    probabilities: Float[Array, " arms"]

    def __init__(self, probabilities: Any):
        several = isinstance(probabilities, list | tuple)
        array = jnp.asarray(probabilities, jnp.result_type(float)) if several else as_float_array(probabilities)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"probabilities must be [arms], one for at least one arm, got shape {list(array.shape)}.")
        if not isinstance(array, Tracer):
            concrete = np.asarray(array)
            if not ((concrete >= 0) & (concrete <= 1)).all():
                raise ValueError(f"probabilities must be in [0, 1], got {concrete.tolist()}.")
        self.probabilities = array

    @property
    def horizon(self) -> int:
        """One pull."""
        return 1

    @property
    def actions(self) -> Discrete:
        """The arms."""
        return Discrete(self.probabilities.shape[-1])

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """A constant."""
        return (1,)

    def reset(self, key: PRNGKey) -> tuple[None, Float[Array, "1"]]:
        del key
        return None, jnp.ones((1,), self.probabilities.dtype)

    @typed
    def step(self, state: None, action: Any, key: PRNGKey) -> Transition:
        del state
        valid = self.actions.check(action)
        dtype = self.probabilities.dtype
        chance = self.probabilities[jnp.clip(jnp.asarray(action), 0, self.actions.size - 1)]
        reward = (jax.random.uniform(key, (), dtype) < chance).astype(dtype)
        valid = valid & ~jnp.isnan(chance)  # no number is below NaN, which would be an arm that never pays
        return Transition(None, jnp.ones((1,), dtype), nan_unless(valid, reward), jnp.ones((), bool))


class Bandits(eqx.Module):
    r"""The distribution of bandits whose arms' probabilities are uniform in `[0, 1]`; `sampler(key)` draws one.

    **Arguments:** `num_arms`, at least 1; 5 by default.

    **Returns** (of a call): a `Bandit`.

    **Raises:** `ValueError` for `num_arms` below 1.

    >>> import jax, metakit as mk
    >>> mk.tasks.Bandits(5)(jax.random.key(0)).probabilities.shape
    (5,)

    **Source:** Duan et al. 2016, "RL^2", section 3.1, https://arxiv.org/abs/1611.02779
    """

    num_arms: int = eqx.field(static=True)

    def __init__(self, num_arms: int = 5):
        if num_arms < 1:
            raise ValueError(f"num_arms must be at least 1, got {num_arms}.")
        self.num_arms = num_arms

    @typed
    def __call__(self, key: PRNGKey) -> Bandit:
        return Bandit(jax.random.uniform(key, (self.num_arms,), jnp.result_type(float)))


@typed
def bandit_optimal_value(num_pulls: int, num_arms: int) -> float:
    r"""The most reward that any learner can expect from `num_pulls` pulls of a bandit drawn from `Bandits(num_arms)`.

    What is known of an arm that won $w$ times and lost $l$ times is a Beta distribution, so the best total from here
    on depends on those counts alone. With $\hat p = (w + 1) / (w + l + 2)$,

    $$V_t(c) = \max_a\ \hat p_a \bigl(1 + V_{t+1}(c + \text{a win of } a)\bigr) + (1 - \hat p_a)\, V_{t+1}(c +
    \text{a loss of } a)$$

    solved exactly, backwards from the last pull. Arms are interchangeable, so a state is a multiset of counts. More
    arms than pulls do not help. A mean score above it, beyond its own error, is a mistake in the measurement.

    **Arguments:** `num_pulls` and `num_arms`, at least 1 each.

    **Returns:** the expected total reward.

    **Raises:** `ValueError` for counts below 1, or for more states than half a million (2 arms allow 60 pulls, 5 arms
    14): there compare with published scores instead.

    **Source:** the dynamic programme of Gittins 1979; uniform arms as in Duan et al. 2016, section 3.1.

    >>> import metakit as mk
    >>> round(mk.tasks.bandit_optimal_value(10, 5), 6)
    6.659988
    """
    if num_pulls < 1 or num_arms < 1:
        raise ValueError(f"num_pulls and num_arms must be at least 1, got {num_pulls} and {num_arms}.")
    levels: list[set[Any]] = [{()}]
    states = 1
    for _ in range(num_pulls - 1):
        levels.append({after for counts in levels[-1] for _, *both in _pulls(counts, num_arms) for after in both})
        states += len(levels[-1])
        if states > _MOST_STATES:
            raise ValueError(
                f"{num_pulls} pulls of {num_arms} arms lead to more than {_MOST_STATES} states, too many for an exact "
                "solution. Ask for fewer pulls; with fewer arms the value is a lower bound."
            )
    later: dict[Any, float] = {}
    for level in reversed(levels):
        later = {
            counts: max(
                chance * (1 + later.get(win, 0.0)) + (1 - chance) * later.get(loss, 0.0)
                for chance, win, loss in _pulls(counts, num_arms)
            )
            for counts in level
        }
    return later[()]


def _pulls(counts: tuple[tuple[int, int], ...], num_arms: int) -> Any:
    """Each arm worth distinguishing: its chance to win, and the counts after a win and after a loss.

    `counts` holds (wins, losses) of the arms pulled so far, sorted; of the others any one stands for all.
    """
    choices = [(arm, tuple(c for j, c in enumerate(counts) if j != i)) for i, arm in enumerate(counts)]
    if len(counts) < num_arms:
        choices.append(((0, 0), counts))
    for (wins, losses), rest in choices:
        chance = (wins + 1) / (wins + losses + 2)
        yield chance, tuple(sorted((*rest, (wins + 1, losses)))), tuple(sorted((*rest, (wins, losses + 1))))
