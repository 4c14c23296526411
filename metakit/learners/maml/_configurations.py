"""Published relatives of MAML, each a configuration of the one learner."""

from typing import Any

import jax.numpy as jnp
import lineax as lx
from jaxtyping import ArrayLike

from metakit._hyperparameter import Hyperparameter
from metakit.inner import AbstractSolver, FirstOrder, Implicit, PerLayerPerStepSGD, PerParameterSGD, select

from ._learner import MAML


def fomaml(model: Any, *, inner: AbstractSolver, num_steps: int, **options: Any) -> MAML:
    """First-order MAML: the meta-gradient is the plain gradient of the query loss at the adapted parameters.

    **Arguments:** as `MAML`, whose `adjoint` is `mk.inner.FirstOrder()`.

    **Returns:** a `MAML`.

    **Source:** Finn et al. 2017, section 5.2, https://arxiv.org/abs/1703.03400.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> type(mk.maml.fomaml(model, inner=mk.inner.SGD(0.1), num_steps=1).adjoint).__name__
    'FirstOrder'
    """
    return MAML(model, inner=inner, num_steps=num_steps, adjoint=FirstOrder(), **options)


def imaml(
    model: Any,
    *,
    inner: AbstractSolver,
    num_steps: int,
    proximal: Hyperparameter | ArrayLike = 2.0,
    linear_solver: lx.AbstractLinearSolver | None = None,
    damping: float = 0.0,
    tolerance: float | None = None,
    **options: Any,
) -> MAML:
    r"""Implicit MAML: the minimum of the support loss near the initialisation, differentiated as a minimum.

    $$\phi^* = \arg\min_\phi L_S(\phi) + \frac\lambda2 \lVert\phi - \theta\rVert^2, \qquad
    \frac{d L_Q(\phi^*)}{d\theta} = \Bigl(I + \tfrac1\lambda \nabla^2 L_S(\phi^*)\Bigr)^{-1} \nabla L_Q(\phi^*)$$

    The memory does not grow with the inner steps, so that there can be hundreds. $\lambda \to \infty$ gives joint
    training. It is a `MAML` with a `proximal` term and `mk.inner.Implicit` as adjoint.

    **Arguments:**

    - `model`, `inner`, `num_steps` and `options`: as `MAML`. The published inner loop on Omniglot is 16 steps at 0.1.
    - `proximal`: $\lambda$; 2 by default, as published for Omniglot. `mk.learned(2.0)` has meta-training move it.
    - `linear_solver`, `damping`: as `mk.inner.Implicit`; by default 5 conjugate-gradient steps, as published, and none.
    - `tolerance`: as `mk.inner.Implicit`. `None`, the default, never checks that the inner loop has converged, which
      after the published 16 steps it has not; `diagnostics` reports the residual.

    **Returns:** a `MAML`.

    **Source:** Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients", algorithm 1 and equation 6,
    https://arxiv.org/abs/1909.04630. The released code takes its steps on the plain support loss with one proximal step
    at the end, and solves with $(1 + 1)I + H/(\lambda + 10)$; here the loop descends the proximal loss throughout and
    the matrix is its own Hessian. It tests without the proximal term, as `dataclasses.replace(learner, proximal=None)`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.imaml(model, inner=mk.inner.SGD(0.1), num_steps=16)
    >>> type(learner.adjoint).__name__, float(learner.proximal.value)
    ('Implicit', 2.0)
    """
    if linear_solver is None:
        linear_solver = lx.CG(rtol=1e-10, atol=1e-10, max_steps=5)
    adjoint = Implicit(linear_solver, damping, tolerance)
    return MAML(model, inner=inner, num_steps=num_steps, adjoint=adjoint, proximal=proximal, **options)


def anil(model: Any, *, inner: AbstractSolver, num_steps: int, **options: Any) -> MAML:
    """Almost no inner loop: only the head adapts, the body is meta-trained.

    **Arguments:** as `MAML`, whose `select` is `mk.inner.select.head_only`; give another to say where the head is.

    **Returns:** a `MAML`.

    **Source:** Raghu et al. 2020, "Rapid Learning or Feature Reuse?", section 4, https://arxiv.org/abs/1909.09157.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> mk.maml.anil(model, inner=mk.inner.SGD(0.1), num_steps=1).num_steps
    1
    """
    return MAML(model, inner=inner, num_steps=num_steps, **{"select": select.head_only, **options})


def boil(model: Any, *, inner: AbstractSolver, num_steps: int, **options: Any) -> MAML:
    """Body only in the inner loop: the head is frozen while a task is learned, and meta-trained.

    **Arguments:** as `MAML`, whose `select` is `mk.inner.select.body_only`; give another to say where the head is.

    **Returns:** a `MAML`.

    **Source:** Oh et al. 2021, "BOIL: Towards Representation Change for Few-shot Learning", section 3,
    https://arxiv.org/abs/2008.08882. The paper's head is meta-trained as here.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> mk.maml.boil(model, inner=mk.inner.SGD(0.1), num_steps=1).num_steps
    1
    """
    return MAML(model, inner=inner, num_steps=num_steps, **{"select": select.body_only, **options})


def meta_sgd(model: Any, *, rate: ArrayLike, num_steps: int = 1, **options: Any) -> MAML:
    """Meta-SGD: a learned rate for every parameter.

    **Arguments:**

    - `model` and `options`: as `MAML`.
    - `rate`: where every rate starts.
    - `num_steps`: 1 by default, as in the paper.

    **Returns:** a `MAML`.

    **Source:** Li et al. 2017, https://arxiv.org/abs/1707.09835; see `mk.inner.PerParameterSGD`.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> mk.maml.meta_sgd(model, rate=0.1).inner.rates.head.weight.value.shape
    (8, 1)
    """
    return MAML(model, inner=PerParameterSGD.like(model, rate), num_steps=num_steps, **options)


def mamlpp(model: Any, *, rate: ArrayLike, num_steps: int = 5, **options: Any) -> MAML:
    """MAML++: learned rates per layer and step, and the query loss weighed over all steps.

    The rest of the recipe is outside the learner: a model with `mk.nn.PerStepNorm(num_steps, ...)`, a cosine schedule
    of the outer rate, `multi_step_weights` through `with_step_weights` as training goes on, and a first phase with
    `with_adjoint(learner, mk.inner.FirstOrder())`. The paper's test numbers are of an ensemble of checkpoints.

    **Arguments:**

    - `model` and `options`: as `MAML`. Norm layers' scales and offsets do not adapt (`mk.inner.select.without_norm`),
      as in the released code; give another `select` to change that.
    - `rate`: where every rate starts.
    - `num_steps`: 5 by default, and the most steps that the rates allow.

    **Returns:** a `MAML` whose `step_weights` are all `1 / num_steps`.

    **Source:** Antoniou et al. 2019, https://arxiv.org/abs/1810.09502.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> mk.maml.mamlpp(model, rate=0.1, num_steps=3).step_weights.value.shape
    (3,)
    """
    inner = PerLayerPerStepSGD.like(model, rate, num_steps)
    settings = {"select": select.without_norm, "step_weights": jnp.full((num_steps,), 1 / num_steps), **options}
    return MAML(model, inner=inner, num_steps=num_steps, **settings)
