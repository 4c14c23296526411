"""MAML++'s schedule of multi-step loss weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metakit._typecheck import typed


@typed
def multi_step_weights(step: int | Int[Array, ""], num_steps: int, decay_steps: int) -> Float[Array, " num_steps"]:
    r"""Weights of the query loss after each inner step, which move to the last one as training goes on.

    $$w_t = \max\Bigl(\frac1K - \frac{i}{K D},\ \frac{0.03}{K}\Bigr) \quad (t < K), \qquad
    w_K = 1 - \sum_{t<K} w_t$$

    **Arguments:**

    - `step`: the training step $i$, at least 0; may be traced.
    - `num_steps`: inner steps $K$, at least 1.
    - `decay_steps`: training steps $D$ in which the weights move, at least 1; the paper's 10 to 15 epochs of 500 steps.

    **Returns:** `[num_steps]`, summing to 1, for `with_step_weights`.

    **Raises:** `ValueError` for `num_steps` or `decay_steps` below 1.

    **Source:** Antoniou et al. 2019, "How to train your MAML", section 4, "Multi-Step Loss Optimization",
    https://arxiv.org/abs/1810.09502; the numbers are the released code's, which counts epochs where this counts steps.

    >>> import metakit as mk
    >>> [round(float(w), 3) for w in mk.maml.multi_step_weights(0, 5, 100)]
    [0.2, 0.2, 0.2, 0.2, 0.2]
    >>> [round(float(w), 3) for w in mk.maml.multi_step_weights(1000, 5, 100)]
    [0.006, 0.006, 0.006, 0.006, 0.976]
    """
    if num_steps < 1 or decay_steps < 1:
        raise ValueError(f"num_steps and decay_steps must be at least 1, got {num_steps} and {decay_steps}.")
    dtype = jnp.result_type(float)
    progress = jnp.asarray(step).astype(dtype) / decay_steps
    early = jnp.maximum((1 - progress) / num_steps, jnp.asarray(0.03 / num_steps, dtype))
    last = 1 - (num_steps - 1) * early
    return jnp.append(jnp.full((num_steps - 1,), early), last)
