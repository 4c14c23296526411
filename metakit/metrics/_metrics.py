"""The metrics, each a function of one task's outputs and targets."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from metakit._normal import Normal
from metakit._typecheck import typed
from metakit._types import Scalar
from metakit.losses import cross_entropy, squared_error


class Metric(Protocol):
    """What a metric is: `metric(outputs, targets)` for the query set of one task.

    **Arguments:** `outputs` `[n, *out]`, or a `mk.Normal` of that shape from a learner that says how sure it is;
    `targets` `[n, *target]`.

    **Returns:** a scalar.
    """

    def __call__(self, outputs: Shaped[Array, "n *out"] | Normal, targets: Shaped[Array, "n *target"]) -> Scalar: ...


@typed
def accuracy(outputs: Float[Array, "n way"], targets: Int[Array, "n"]) -> Scalar:
    """The fraction of examples whose highest logit is their label's.

    **Arguments:** `outputs`, logits `[n, way]`; `targets`, labels `[n]`.

    **Returns:** a number in 0..1. Among equal logits the lowest class counts as the prediction, and a row that holds
    NaN is never right, so a diverged learner cannot score chance by accident.

    >>> import jax.numpy as jnp
    >>> float(accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0])))
    0.75
    """
    finite = ~jnp.any(jnp.isnan(outputs), axis=-1)
    right = (jnp.argmax(outputs, axis=-1).astype(targets.dtype) == targets) & finite
    return jnp.mean(right.astype(outputs.dtype))


@typed
def negative_log_likelihood(outputs: Float[Array, "n way"], targets: Int[Array, "n"]) -> Scalar:
    """Mean cross-entropy in nats: a proper score, so it also punishes confident mistakes.

    **Arguments:** `outputs`, logits `[n, way]`; `targets`, labels `[n]`.

    **Returns:** nats per example; $\\log$ way is what a uniform guess earns.

    >>> import jax.numpy as jnp
    >>> round(float(negative_log_likelihood(jnp.zeros((2, 5)), jnp.array([0, 4]))), 4)
    1.6094
    """
    return cross_entropy(outputs, targets, reduction="mean")


@typed
def expected_calibration_error(
    outputs: Float[Array, "n way"], targets: Int[Array, "n"], *, num_bins: int = 15
) -> Scalar:
    r"""How far confidence and accuracy are apart, over equal-width bins of confidence.

    $$\mathrm{ECE} = \sum_{b} \frac{n_b}{n}\,\lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert$$

    **Arguments:**

    - `outputs`: logits `[n, way]`.
    - `targets`: labels `[n]`.
    - `num_bins`: bins of $(0, 1]$, each open on the left; 15 as in the source.

    **Returns:** a number in 0..1. With the few queries of one task it is biased upwards (every bin's accuracy is
    noisy): pool the predictions of many tasks, as `mk.evaluate.calibration` does, before quoting it.

    **Raises:** `ValueError` when `num_bins` is below 1.

    **Source:** Guo et al. 2017, *On Calibration of Modern Neural Networks*, equation 3, https://arxiv.org/abs/1706.04599

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2]]))
    >>> round(float(expected_calibration_error(logits, jnp.array([0, 1]))), 4)
    0.3
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}; the usual value is 15.")
    dtype = outputs.dtype
    confidence = jnp.max(jax.nn.softmax(outputs, axis=-1), axis=-1)
    right = (jnp.argmax(outputs, axis=-1).astype(targets.dtype) == targets).astype(dtype)
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    gap = jax.ops.segment_sum(right - confidence, bins, num_segments=num_bins)
    return jnp.sum(jnp.abs(gap)) / outputs.shape[0]


@typed
def mean_squared_error(outputs: Float[Array, "n *out"] | Normal, targets: Float[Array, "n *out"]) -> Scalar:
    """Mean squared error over examples and target axes.

    **Arguments:** `outputs` and `targets`, `[n, *out]` each; of a `mk.Normal` the mean counts.

    **Returns:** a number at or above 0, in squared units of the target.

    >>> import jax.numpy as jnp
    >>> float(mean_squared_error(jnp.ones((3, 1)), jnp.zeros((3, 1))))
    1.0
    """
    outputs = outputs.mean if isinstance(outputs, Normal) else outputs
    return squared_error(outputs, targets, reduction="mean")


@typed
def log_density(outputs: Normal, targets: Float[Array, "n *out"]) -> Scalar:
    r"""Mean log-density of real targets under the predicted normal distributions: a proper score, higher is better.

    $$\frac1n \sum_{i=1}^n \sum_j \log N(y_{ij}; \mu_{ij}, \sigma_{ij}^2)$$

    **Arguments:** `outputs`, a `mk.Normal` of shape `[n, *out]`; `targets`, `[n, *out]`.

    **Returns:** nats per target, added over the axes of one target (`mk.losses.gaussian_nll` averages over them).
    It may lie above 0: a density is no probability, and changes with the unit of the target.

    **Raises:** `ValueError` when the shapes differ.

    >>> import jax.numpy as jnp, metakit as mk
    >>> outputs = mk.Normal(jnp.zeros((3, 2)), jnp.ones((3, 2)))
    >>> round(float(log_density(outputs, jnp.zeros((3, 2)))), 4)
    -1.8379
    """
    nats = outputs.log_density(targets)
    return jnp.mean(jnp.sum(nats.reshape(nats.shape[0], -1), axis=1))
