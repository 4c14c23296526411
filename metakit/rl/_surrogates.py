"""Losses whose derivatives are policy gradients."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metakit._errors import require_option
from metakit._typecheck import typed
from metakit._types import Scalar

from ._trajectories import masked_mean

Surrogate: TypeAlias = Literal["ratio", "dice", "logp"]
SURROGATES: tuple[str, ...] = get_args(Surrogate)


@typed
def policy_surrogate(
    kind: str,
    log_probs: Float[Array, "episodes horizon"],
    behaviour: Float[Array, "episodes horizon"],
    advantages: Float[Array, "episodes horizon"],
    mask: Bool[Array, "episodes horizon"],
) -> Scalar:
    r"""A loss whose gradient is the policy gradient; the kinds differ in their second derivatives.

    With the probability ratio $\rho_t = \pi_\theta(a_t \mid o_t) / \pi_\text{old}(a_t \mid o_t)$ and
    $m_t = \prod_{s \le t} \pi_\theta(a_s \mid o_s) / \mathrm{sg}[\pi_\theta(a_s \mid o_s)]$, which is 1 but has a
    derivative,

    $$L_\text{ratio} = -\operatorname{mean}_t \rho_t A_t, \qquad
      L_\text{dice} = -\operatorname{mean}_t (m_t - m_{t-1} + 1) A_t, \qquad
      L_\text{logp} = -\operatorname{mean}_t A_t \log \pi_\theta(a_t \mid o_t)$$

    All three have the policy gradient as their first derivative, in expectation; they differ in the second, which is
    what the meta-gradient of an inner step is made of:

    - `"ratio"`: right within a step, and so exact in episodes of one step; what an action's probability has to do with
      later ones is left out, and with it most of the noise. The only one that is right on other policies' data.
    - `"dice"`: exact for $\lambda = 1$, at the price of noise that grows with the length of an episode. The data count
      as the policy's own.
    - `"logp"`: wrong. With advantages of mean 0, episodes of one step and a softmax that is linear in its parameters it
      is zero, and MAML is then first-order MAML.

    **Arguments:**

    - `kind`: `"ratio"`, `"dice"` or `"logp"`.
    - `log_probs`: of the actions taken, under the policy that is differentiated.
    - `behaviour`: of the same actions, under the policy that took them; only `"ratio"` uses it.
    - `advantages`: $A_t$; may be differentiated, and usually is constant.
    - `mask`: whether the step took place.

    **Returns:** a scalar to be minimised, a mean over the steps that took place.

    **Raises:** `ValueError` for an unknown kind.

    **Source:** `"logp"`: Finn et al. 2017, equation 4, https://arxiv.org/abs/1703.03400, as released. `"dice"`:
    Foerster et al. 2018, "DiCE: The Infinitely Differentiable Monte Carlo Estimator",
    https://arxiv.org/abs/1802.05098, in the form for advantages of Farquhar et al. 2019, "Loaded DiCE",
    https://arxiv.org/abs/1909.10549. `"ratio"`: Rothfuss et al. 2019, "ProMP: Proximal Meta-Policy Search", section 5,
    https://arxiv.org/abs/1810.06784, who call its second derivative the low-variance curvature.

    >>> import jax.numpy as jnp
    >>> logs, yes = jnp.log(jnp.array([[0.5]])), jnp.ones((1, 1), bool)
    >>> float(policy_surrogate("ratio", logs, logs, jnp.array([[3.0]]), yes))
    -3.0
    """
    require_option("surrogate", kind, SURROGATES)
    if kind == "logp":
        return -masked_mean(log_probs * advantages, mask)
    if kind == "ratio":
        return -masked_mean(jnp.exp(jnp.where(mask, log_probs - behaviour, 0)) * advantages, mask)
    present = jnp.where(mask, log_probs, jnp.zeros_like(log_probs))
    until = jnp.cumsum(present, axis=1)
    magic = jnp.exp(until - jax.lax.stop_gradient(until))
    before = jnp.concatenate([jnp.ones_like(magic[:, :1]), magic[:, :-1]], axis=1)
    return -masked_mean((magic - before + 1) * advantages, mask)


@typed
def clipped_surrogate(
    log_probs: Float[Array, "episodes horizon"],
    behaviour: Float[Array, "episodes horizon"],
    advantages: Float[Array, "episodes horizon"],
    mask: Bool[Array, "episodes horizon"],
    clip: Scalar,
) -> Scalar:
    r"""The loss of proximal policy optimisation.

    $$L = -\operatorname{mean}_t \min\bigl(\rho_t A_t,\ \operatorname{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\,
    A_t\bigr), \qquad \rho_t = \pi_\theta(a_t \mid o_t) / \pi_\text{old}(a_t \mid o_t)$$

    On data of the policy itself all ratios are 1, and it is `policy_surrogate("ratio", ...)`; it differs once several
    steps are taken on the same data (`mk.train.Epochs`).

    **Arguments:** as `policy_surrogate`; `clip`, $\epsilon$, above 0.

    **Returns:** a scalar to be minimised.

    **Source:** Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7,
    https://arxiv.org/abs/1707.06347

    >>> import jax.numpy as jnp
    >>> logs, yes = jnp.log(jnp.array([[0.9]])), jnp.ones((1, 1), bool)
    >>> round(float(clipped_surrogate(logs, jnp.log(jnp.array([[0.5]])), jnp.ones((1, 1)), yes, jnp.array(0.2))), 6)
    -1.2
    """
    ratios = jnp.exp(jnp.where(mask, log_probs - behaviour, 0))
    bounded = jnp.clip(ratios, 1 - clip, 1 + clip)
    return -masked_mean(jnp.minimum(ratios * advantages, bounded * advantages), mask)
