"""A temperature on what a learner predicts: as right as before, and as sure as it should be."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from metakit._algorithm import Algorithm, require_algorithm
from metakit._episode import Episode, Examples
from metakit._hyperparameter import Hyperparameter, as_hyperparameter, learned
from metakit._normal import Normal
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.losses import cross_entropy
from metakit.metrics import log_density

from ._base import name_over, require_examples, require_outputs


class Tempered(eqx.Module):
    r"""The learner of `mk.tempered`: a learner and a temperature.

    **Arguments:**

    - `base`: the learner.
    - `temperature`: $T > 0$; below 1 sharpens, above 1 softens. `mk.learned(1.0)` (the default) is fitted by training;
      `mk.fixed(2.0)`, or a plain number, stays.

    What is stored is `log_temperature`, in whose gradient step no $T$ becomes negative; `temperature` is $T$.

    **Raises:** `ValueError` for a temperature that is not above 0, or more than one number.

    >>> import jax, metakit as mk
    >>> base = mk.prototypical.Prototypical(mk.nn.MLP(2, 4, 8, 1, key=jax.random.key(0)))
    >>> learner = mk.Tempered(base)
    >>> float(learner.temperature), learner.log_temperature.learned
    (1.0, True)
    """

    base: Any
    log_temperature: Hyperparameter

    def __init__(self, base: Any, temperature: Hyperparameter | ArrayLike | None = None):
        given = learned(1.0) if temperature is None else as_hyperparameter(temperature)
        if given.value.shape != ():
            raise ValueError(f"temperature must be one number, got shape {list(given.value.shape)}.")
        if not isinstance(given.value, Tracer) and not 0 < float(given.value) < float("inf"):
            raise ValueError(f"temperature must be above 0, got {float(given.value):g}. 1 changes nothing.")
        self.base = base
        self.log_temperature = Hyperparameter(jnp.log(given.value), given.learned)

    @property
    def temperature(self) -> Scalar:
        """T, by which logits are divided and standard deviations multiplied."""
        return jnp.exp(self.log_temperature.value)

    @property
    def gives_log_probabilities(self) -> bool:
        """Whether the base learner's logits are log-probabilities."""
        return getattr(self.base, "gives_log_probabilities", False)


class AdaptedBase(eqx.Module):
    """What the base learner has learnt of one task, and the temperature."""

    base: Any
    temperature: Scalar
    classifies: bool = eqx.field(static=True)


@dataclasses.dataclass(frozen=True)
class TemperedAlgorithm:
    """`mk.tempered(base)`: equal where the bases are, so that nothing compiles again."""

    base: Algorithm

    @property
    def __name__(self) -> str:
        return name_over("tempered", self.base)

    @typed
    def adapt(self, learner: Tempered, support: Any, key: PRNGKey | None = None) -> AdaptedBase:
        require_examples(support, "mk.tempered")
        adapted = self.base.adapt(learner.base, support, key)
        return AdaptedBase(adapted, learner.temperature, support.way is not None)

    @typed
    def predict(self, adapted: AdaptedBase, x: Any, key: PRNGKey | None = None) -> Any:
        outputs = self.base.predict(adapted.base, x, key)
        require_outputs(outputs, "mk.tempered")
        temperature = adapted.temperature.astype(outputs.dtype)
        if isinstance(outputs, Normal):
            return Normal(outputs.mean, temperature * outputs.scale)
        if not adapted.classifies:
            raise ValueError(
                f"mk.tempered needs outputs that say how sure they are, got real values {list(outputs.shape)} alone. "
                "Use it on a classifier, whose support sets have a way, or on a learner that predicts an mk.Normal."
            )
        return outputs / temperature

    @typed
    def meta_loss(self, learner: Tempered, task: Episode, key: PRNGKey | None = None) -> Scalar:
        adapt_key, predict_key = (None, None) if key is None else jax.random.split(key)
        adapted = self.adapt(learner, task.support, adapt_key)
        return _surprise(self.predict(adapted, task.query.x, predict_key), task.query)


@typed
def _surprise(outputs: Normal | Float[Array, "n way"], query: Examples) -> Scalar:
    """The mean negative log-likelihood of the query targets."""
    if isinstance(outputs, Normal):
        return -log_density(outputs, query.y)
    return cross_entropy(outputs, query.y, reduction="mean")


def tempered(algorithm: Any) -> TemperedAlgorithm:
    r"""An algorithm whose predictions have a temperature, to calibrate how sure it is of them.

    $$p(y = c \mid x) = \operatorname{softmax}_c(z / T), \qquad \text{or} \quad N(\mu, (T \sigma)^2)$$

    Logits are divided by $T$, which leaves their order, and so the accuracy, as it is; the standard deviations of
    `mk.Normal` outputs are multiplied by it. The meta-loss is the mean negative log-likelihood of the query targets
    under these predictions, whatever loss the base algorithm has: a proper score, whose minimum is calibrated.

    To calibrate a trained learner, train the temperature alone on tasks that the learner was not trained on:
    `mk.train.init(mk.Tempered(learner), optimiser, key=key, trainable=mk.inner.select.only(lambda t:
    t.log_temperature))`. Equal algorithms give equal tempered ones: calling this twice compiles nothing again.

    **Arguments:**

    - `algorithm`: any algorithm of episodes that classifies or predicts an `mk.Normal`; a module such as `mk.maml`, or
      what another combinator returned.

    **Returns:** an algorithm whose learner is a `mk.Tempered`. `adapt` and `predict` pass their key on.

    **Raises:** `TypeError` for something that is no algorithm. Its `adapt` raises `TypeError` for tasks that are no
    episodes, its `predict` a `ValueError` for real outputs, which say nothing about how sure they are.

    **Source:** Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2,
    https://arxiv.org/abs/1706.04599.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> algorithm, learner = mk.tempered(mk.prototypical), mk.Tempered(mk.prototypical.Prototypical(lambda x: x), 4.0)
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> algorithm.predict(algorithm.adapt(learner, support), jnp.zeros((1, 2))).round(2).tolist()
    [[-0.25, -0.25]]
    >>> algorithm == mk.tempered(mk.prototypical)
    True
    """
    require_algorithm(algorithm)
    return _kept(algorithm)


@functools.lru_cache(maxsize=128)
def _kept(base: Any) -> TemperedAlgorithm:
    """The same object while it is remembered: two bound methods are equal only if their objects are the same one."""
    return TemperedAlgorithm(base)
