"""Published relatives of MAML, each a configuration of the one learner."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike

from metakit.inner import AbstractSolver, FirstOrder, PerLayerPerStepSGD, PerParameterSGD, select

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
