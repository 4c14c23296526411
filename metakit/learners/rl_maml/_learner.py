"""The learner of MAML on policy gradients: a policy, an inner loop, and how advantages are estimated."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
from jaxtyping import ArrayLike

from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._static import as_node
from metakit._typecheck import typed
from metakit.inner import AbstractAdjoint, AbstractSolver, Unrolled, check_steps, select as selection
from metakit.learners._options import fraction, positive, require_sizes
from metakit.rl import SURROGATES, Surrogate

Outer = Literal["ratio", "clipped"]
Baseline = Literal["linear", "none"]


class RLMAML(eqx.Module):
    r"""MAML on policy gradients: a policy that a few gradient steps on its own episodes make good at a new task.

    $$\theta_0 = \theta, \qquad D_t \sim \pi_{\theta_t}, \qquad \theta_{t+1} = \theta_t - \alpha \nabla L(\theta_t;
    D_t), \qquad \min_\theta L_\text{outer}(\theta_K; D_K)$$

    Each inner step has episodes of its own, collected by the policy so far. Advantages are returns minus a baseline,
    by `mk.rl.gae`, and standardised over the episodes of one task and step.

    **Arguments:**

    - `policy`: a module that maps observations `[n, *observation]` to a distribution, such as
      `mk.rl.GaussianPolicy(network, 2)`.
    - `inner`: the update rule, such as `mk.inner.SGD(0.1)`.
    - `num_steps`: inner steps $K$ that `meta_loss` trains for, static, at least 0; 1 by default.
    - `num_episodes`: collected before each inner step, and after the last for the outer loss; static, at least 1; 20 by
      default, as published.
    - `surrogate`: the inner loss, `"ratio"` (the default), `"dice"` or `"logp"`; see `mk.rl.policy_surrogate` for how
      their second derivatives, and so the meta-gradients, differ. Published is `"logp"`, whose meta-gradient is in
      expectation nearly that of first-order MAML.
    - `outer`: the outer loss: `"ratio"` (the default), for trust region steps (`mk.train.TrustRegion`) and single
      gradient steps; or `"clipped"`, PPO's, for several steps on the same data (`mk.train.Epochs`).
    - `clip`: $\epsilon$ of `"clipped"`, above 0; default 0.2.
    - `discount`, `trace_decay`: $\gamma$ and $\lambda$, from 0 to 1; default 0.99 and 1, as published.
    - `baseline`: `"linear"` (the default), `mk.rl.linear_baseline`; or `"none"`.
    - `baseline_penalty`: its $\lambda$, above 0; default 1e-5.
    - `standardise`: whether advantages are, static; default yes.
    - `adjoint`: how the inner loop is differentiated; default `mk.inner.Unrolled()`, the exact second order.
    - `select`: which leaves of the policy adapt; default all, the noise of a `GaussianPolicy` too.

    **Raises:** `ValueError` for counts below these, more steps than the solver has rates for, an unknown option, a
    number that is not one, or a filter that selects nothing; `TypeError` for a policy that cannot be called, or an
    `inner` or `adjoint` that is not one.

    **Source:** Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning", algorithm 3,
    https://arxiv.org/abs/1703.03400; the numbers are the released code's (cbfinn/maml_rl). As there, the outer gradient
    leaves out how the start changes which inner episodes are collected.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 8, 1, key=jax.random.key(0)), 2)
    >>> mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.1)).surrogate
    'ratio'
    """

    policy: Callable[..., Any] = eqx.field(converter=as_node)
    inner: AbstractSolver
    num_steps: int = eqx.field(static=True)
    num_episodes: int = eqx.field(static=True)
    surrogate: Surrogate = eqx.field(static=True)
    outer: Outer = eqx.field(static=True)
    clip: Hyperparameter
    discount: Hyperparameter
    trace_decay: Hyperparameter
    baseline: Baseline = eqx.field(static=True)
    baseline_penalty: Hyperparameter
    standardise: bool = eqx.field(static=True)
    adjoint: AbstractAdjoint
    select: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(
        self,
        policy: Callable[..., Any],
        *,
        inner: AbstractSolver,
        num_steps: int = 1,
        num_episodes: int = 20,
        surrogate: Surrogate = "ratio",
        outer: Outer = "ratio",
        clip: Hyperparameter | ArrayLike = 0.2,
        discount: Hyperparameter | ArrayLike = 0.99,
        trace_decay: Hyperparameter | ArrayLike = 1.0,
        baseline: Baseline = "linear",
        baseline_penalty: Hyperparameter | ArrayLike = 1e-5,
        standardise: bool = True,
        adjoint: AbstractAdjoint | None = None,
        select: Callable[[Any], Any] = selection.everything,
    ):
        adjoint = Unrolled() if adjoint is None else adjoint
        if not callable(policy):
            raise TypeError(f"policy must be callable on observations [n, *observation], got {type(policy).__name__}.")
        for name, value, kind in (("inner", inner, AbstractSolver), ("adjoint", adjoint, AbstractAdjoint)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be an mk.inner.{kind.__name__}, got {type(value).__name__}.")
        require_sizes(num_episodes=num_episodes)
        require_option("surrogate", surrogate, SURROGATES)
        require_option("outer", outer, get_args(Outer))
        require_option("baseline", baseline, get_args(Baseline))
        selection.partition(policy, select)  # for its errors
        check_steps(inner, num_steps)
        self.policy = policy
        self.inner = inner
        self.num_steps = num_steps
        self.num_episodes = num_episodes
        self.surrogate = surrogate
        self.outer = outer
        self.clip = positive("clip", clip)
        self.discount = fraction("discount", discount)
        self.trace_decay = fraction("trace_decay", trace_decay)
        self.baseline = baseline
        self.baseline_penalty = positive("baseline_penalty", baseline_penalty)
        self.standardise = standardise
        self.adjoint = adjoint
        self.select = select


@typed
def with_num_steps(learner: RLMAML, num_steps: int) -> RLMAML:
    """The same learner with another number of inner steps in `collect`, `meta_loss` and `diagnostics`.

    **Arguments:** `learner`; `num_steps`, static, at least 0.

    **Returns:** a new learner.

    **Raises:** `ValueError` for a negative number, or more than the solver has rates for.

    >>> import jax, metakit as mk
    >>> policy = mk.rl.GaussianPolicy(mk.nn.MLP(2, 2, 8, 1, key=jax.random.key(0)), 2)
    >>> mk.rl_maml.with_num_steps(mk.rl_maml.RLMAML(policy, inner=mk.inner.SGD(0.1)), 3).num_steps
    3
    """
    return dataclasses.replace(learner, num_steps=num_steps)
