"""Trust region policy optimisation, over any algorithm that can say how far its behaviour moved."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int

from metakit._algorithm import MetaLearner
from metakit._compile import compiled
from metakit._tree import all_finite, as_float_array, global_norm
from metakit._typecheck import typed
from metakit.sharding import meta_gradient

from ._acting import begin, mean_over_tasks
from ._state import TrainState, require_unused
from ._step import StepDiagnostics, choose


class TrustRegionDetails(eqx.Module):
    """What `TrustRegion` reports beside the loss.

    - `divergence`: of the step that was taken, a mean over tasks; 0 where none was.
    - `improvement`: by how much the loss fell on the data collected.
    - `backtracks`: how often the step was shortened; equal to `max_backtracks + 1` where no length would do, and then
      the learner stayed as it was.

    >>> import jax.numpy as jnp
    >>> int(TrustRegionDetails(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), int)).backtracks)
    0
    """

    divergence: Float[Array, "*steps"]
    improvement: Float[Array, "*steps"]
    backtracks: Int[Array, "*steps"]


class TrustRegion(eqx.Module):
    r"""A step of trust region policy optimisation: the natural gradient, as far as the divergence allows.

    With the mean loss $L$ and mean divergence $\bar D$ over tasks, on the data that the learner $\theta$ collected, and
    the divergence's Hessian $H$ at $\theta$,

    $$s = (H + \lambda I)^{-1} \nabla L, \qquad \theta' = \theta - \beta^j \sqrt{\frac{2 \delta}{s^\top (H + \lambda I)
    s}}\; s$$

    with the smallest $j \ge 0$ for which $L(\theta') < L(\theta)$ and $\bar D(\theta') \le \delta$. The system is
    solved by conjugate gradients on Hessian-vector products. For MAML both go through the inner steps, so the trust
    region is about the *adapted* policies, as published.

    It is called like `step` and can stand in its place: `mk.train.run_steps(..., rule=mk.train.TrustRegion())`. The
    optimiser given there is not used, nor its state; `optax.identity()` says so.

    **Arguments:**

    - `max_divergence`: $\delta$, above 0; default 0.01, the published.
    - `damping`: $\lambda$, at least 0; default 1e-5.
    - `backtrack`: $\beta$, between 0 and 1; default 0.8.
    - `num_iterations`: of conjugate gradients, at least 1, static; default 10.
    - `max_backtracks`: the largest $j$, at least 0, static; default 15.

    **Returns** (of a call): as `step`, with `details` a `TrustRegionDetails`. Where no length of the step will do, the
    learner stays as it is and the step counts.

    **Raises:** `ValueError` for numbers outside these ranges; of a call, `TypeError` for an algorithm without `collect`
    and `divergence`, and what `step` raises.

    **Source:** Schulman et al. 2015, "Trust Region Policy Optimization", section 6 and appendix C,
    https://arxiv.org/abs/1502.05477; numbers of MAML's released code (cbfinn/maml_rl).

    >>> import jax, optax, metakit as mk
    >>> policy = mk.rl_squared.gru_policy((1,), mk.Discrete(2), 4, key=jax.random.key(0))
    >>> learner = mk.rl_squared.RLSquared(policy, num_episodes=3, objective="a2c")
    >>> optimiser = optax.identity()
    >>> state = mk.train.init(learner, optimiser, key=jax.random.key(1))
    >>> tasks = mk.train.draw_tasks(mk.tasks.Bandits(2), state, meta_batch=4)
    >>> state, diagnostics = mk.train.TrustRegion(0.01)(mk.rl_squared, optimiser, state, tasks)
    >>> bool(diagnostics.details.divergence <= 0.01)
    True
    """

    max_divergence: Float[Array, ""]
    damping: Float[Array, ""]
    backtrack: Float[Array, ""]
    num_iterations: int = eqx.field(static=True)
    max_backtracks: int = eqx.field(static=True)

    def __init__(
        self,
        max_divergence: ArrayLike = 0.01,
        *,
        damping: ArrayLike = 1e-5,
        backtrack: ArrayLike = 0.8,
        num_iterations: int = 10,
        max_backtracks: int = 15,
    ):
        for name, value, holds, expected in (
            ("max_divergence", max_divergence, lambda x: x > 0, "above 0"),
            ("damping", damping, lambda x: x >= 0, "at least 0"),
            ("backtrack", backtrack, lambda x: 0 < x < 1, "between 0 and 1"),
            ("num_iterations", num_iterations, lambda x: x >= 1, "at least 1"),
            ("max_backtracks", max_backtracks, lambda x: x >= 0, "at least 0"),
        ):
            if not holds(value):
                raise ValueError(f"{name} must be {expected}, got {value}.")
        self.max_divergence = as_float_array(max_divergence)
        self.damping = as_float_array(damping)
        self.backtrack = as_float_array(backtrack)
        self.num_iterations = num_iterations
        self.max_backtracks = max_backtracks

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
        del optimiser
        return _jit_trust_region(self, algorithm, state, tasks, mesh, chunk, anneal)


@compiled
def _jit_trust_region(rule, algorithm, state, tasks, mesh, chunk, anneal):
    learner, data = begin(algorithm, state, tasks, mesh, chunk, anneal, "TrustRegion")
    params, rest = eqx.partition(learner, state.mask)
    result = meta_gradient(algorithm, learner, data, trainable=state.mask, mesh=mesh, chunk=chunk)
    norm = global_norm(result.gradient)

    def curvature(direction):
        product = _curvature(algorithm, state.mask, learner, direction, data, mesh, chunk)
        return jax.tree.map(lambda h, v: h + rule.damping.astype(v.dtype) * v, product, direction)

    # The tolerance is far below what ten iterations reach, so that it is their number that counts.
    direction, _ = jax.scipy.sparse.linalg.cg(curvature, result.gradient, tol=1e-10, maxiter=rule.num_iterations)
    size = _dot(direction, curvature(direction))
    longest = jnp.where(size > 0, jnp.sqrt(2 * rule.max_divergence.astype(size.dtype) / jnp.abs(size)), 0)

    def moved(backtracks):
        length = longest * rule.backtrack.astype(size.dtype) ** backtracks.astype(size.dtype)
        return jax.tree.map(lambda p, s: p - length.astype(p.dtype) * s, params, direction)

    def one(candidate, data):
        return algorithm.meta_loss(candidate, data), algorithm.divergence(candidate, data)

    def judge(params):
        return mean_over_tasks(eqx.Partial(one, eqx.combine(params, rest)), data, mesh, chunk)

    # Judged by one function: the loss that came with the gradient may differ from it in the last digit.
    start, _ = judge(params)

    def acceptable(loss, divergence):
        return (loss < start) & (divergence <= rule.max_divergence.astype(divergence.dtype))

    def unfinished(carry):
        backtracks, loss, divergence = carry
        return ~acceptable(loss, divergence) & (backtracks <= rule.max_backtracks)

    def shorten(carry):
        backtracks = carry[0] + jnp.ones_like(carry[0])
        return backtracks, *judge(moved(backtracks))

    zero = jnp.zeros((), jnp.int32)
    backtracks, loss, divergence = jax.lax.while_loop(unfinished, shorten, (zero, *judge(moved(zero))))
    taken = acceptable(loss, divergence) & (backtracks <= rule.max_backtracks)
    new_params = jax.tree.map(lambda new, old: jnp.where(taken, new, old), moved(backtracks), params)

    finite = jnp.isfinite(result.loss) & jnp.isfinite(norm) & all_finite(new_params)
    next_step = state.step + jnp.ones_like(state.step)
    new = TrainState(eqx.combine(new_params, rest), state.opt_state, next_step, state.key, state.moves)
    details = TrustRegionDetails(
        jnp.where(taken, divergence, jnp.zeros_like(divergence)),
        jnp.where(taken, start - loss, jnp.zeros_like(loss)),
        backtracks,
    )
    return choose(finite, new, state), StepDiagnostics(result.loss, norm, finite, details)


def _curvature(algorithm: Any, mask: Any, learner: Any, direction: Any, data: Any, mesh: Any, chunk: Any) -> Any:
    """The Hessian of the mean divergence times a direction: the gradient of the derivative along it."""

    def along(pair: Any, data: Any, key: Any = None) -> Array:
        del key
        learner, direction = pair
        params, rest = eqx.partition(learner, mask)
        slope = jax.grad(lambda params: algorithm.divergence(eqx.combine(params, rest), data))(params)
        return _dot(slope, direction)

    product = meta_gradient(
        MetaLearner(algorithm.adapt, algorithm.predict, along),
        (learner, direction),
        data,
        trainable=(mask, jax.tree.map(lambda _: False, direction)),
        mesh=mesh,
        chunk=chunk,
    )
    return product.gradient[0]


def _dot(a: Any, b: Any) -> Array:
    return jnp.sum(jnp.stack([jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]))
