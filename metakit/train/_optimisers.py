"""Adam as meta-learning papers use it."""

import functools

import optax

from metakit._errors import nearest
from metakit._typecheck import typed


@typed
def adam(
    rate: float,
    *,
    schedule: str = "constant",
    num_steps: int | None = None,
    every: int | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> optax.GradientTransformation:
    r"""Adam with a schedule and gradient clipping, for the outer loop.

    $$\eta_s = \eta \;\text{(constant)}, \qquad \eta_s = \tfrac{\eta}{2}\big(1 + \cos \tfrac{\pi s}{S}\big)
      \;\text{(cosine)}, \qquad \eta_s = \eta\, 2^{-\lfloor s / m \rfloor} \;\text{(halving)}, \qquad
      \eta_s = \eta \min\bigl(1, 5\,(1 - \tfrac sS)\bigr) \;\text{(cooldown)}$$

    Any other optax transformation works as well; this one only saves typing. The same arguments give the same
    object, so making it again does not compile again.

    **Arguments:**

    - `rate`: $\eta$, above 0; 1e-3 is usual.
    - `schedule`: `"constant"` (the default), `"cosine"`, `"halving"`, or `"cooldown"`: constant for four fifths of the
      steps, then along a line to 0. Its constant part is that of any longer run.
    - `num_steps`: $S$, at which the rate reaches 0; for `"cosine"` and `"cooldown"` only.
    - `every`: $m$, after how many steps each a halving schedule halves; for `"halving"` only.
    - `clip_norm`: scale the gradient down to this Euclidean norm; `None` (the default) does not.
    - `clip_value`: clip each number of the gradient to plus or minus this; `None` (the default) does not.
      MAML++ clips to 10 in its mini-ImageNet runs. With both, values are clipped first.

    **Returns:** an `optax.GradientTransformation`.

    **Raises:** `ValueError` for a rate or clip that is not positive, an unknown schedule, or a schedule
    without its own argument (or with another's).

    **Source:** Kingma and Ba 2015, *Adam*, https://arxiv.org/abs/1412.6980; cosine annealing as in Antoniou
    et al. 2019, *How to train your MAML*, https://arxiv.org/abs/1810.09502; halving every 2000 episodes as in
    Snell et al. 2017, *Prototypical Networks*, https://arxiv.org/abs/1703.05175; cooldown over a fifth as in
    Hägele et al. 2024, *Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations*,
    https://arxiv.org/abs/2405.18392

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> optimiser = adam(1e-3, schedule="halving", every=2000, clip_norm=10.0)
    >>> pull = mk.MetaLearner(None, None, lambda w, task, key=None: 0.5 * (w - task) ** 2)
    >>> state = mk.train.init(jnp.ones(()), optimiser, key=jax.random.key(0))
    >>> state, _ = mk.train.step(pull, optimiser, state, jnp.zeros(1))
    >>> round(float(state.learner), 6)
    0.999
    """
    for name, value in (("rate", rate), ("clip_norm", clip_norm), ("clip_value", clip_value)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
    needs = {"constant": None, "cosine": "num_steps", "halving": "every", "cooldown": "num_steps"}
    if schedule not in needs:
        raise ValueError(f"schedule={schedule!r} is not known. {nearest(schedule, needs)}")
    for name, value in (("num_steps", num_steps), ("every", every)):
        if needs[schedule] == name and (value is None or value < 1):
            raise ValueError(f"schedule={schedule!r} needs {name}, a number of steps of at least 1, got {value}.")
        if needs[schedule] != name and value is not None:
            raise ValueError(f"schedule={schedule!r} does not use {name}={value}; leave it out or change the schedule.")
    return _adam(rate, schedule, num_steps, every, clip_norm, clip_value)


# Optax makes new functions each time, and a jitted step that is given other functions compiles again.
@functools.lru_cache(maxsize=128)
def _adam(
    rate: float,
    schedule: str,
    num_steps: int | None,
    every: int | None,
    clip_norm: float | None,
    clip_value: float | None,
) -> optax.GradientTransformation:
    if schedule == "cooldown":
        assert num_steps is not None
        fifth = max(num_steps // 5, 1)
        rates = optax.linear_schedule(rate, 0.0, fifth, transition_begin=num_steps - fifth)
    elif num_steps is not None:
        rates = optax.cosine_decay_schedule(rate, num_steps)
    elif every is not None:
        rates = optax.exponential_decay(rate, transition_steps=every, decay_rate=0.5, staircase=True)
    else:
        rates = rate
    clips = []
    if clip_value is not None:
        clips.append(optax.clip(clip_value))
    if clip_norm is not None:
        clips.append(optax.clip_by_global_norm(clip_norm))
    return optax.chain(*clips, optax.adam(rates))
