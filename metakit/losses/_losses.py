"""The losses, and how each is reduced."""

from typing import Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from metakit._errors import nearest
from metakit._typecheck import typed

Reduction: TypeAlias = Literal["mean", "sum", "none"]


class Loss(Protocol):
    """What a loss is: `loss(outputs, targets, *, reduction)`.

    **Arguments:** `outputs` `[n, *out]`; `targets` `[n, *target]`; `reduction`, `"mean"`, `"sum"` or `"none"`.

    **Returns:** a scalar, or `[n]`, one number per example, for `"none"`.
    """

    def __call__(
        self, outputs: Shaped[Array, "n *out"], targets: Shaped[Array, "n *target"], *, reduction: Reduction
    ) -> Float[Array, "..."]: ...


def _reduce(per_example: Float[Array, " n"], reduction: str) -> Float[Array, "..."]:
    match reduction:
        case "mean":
            return jnp.mean(per_example)
        case "sum":
            return jnp.sum(per_example)
        case "none":
            return per_example
        case _:
            raise ValueError(
                f"reduction={reduction!r} is not known. {nearest(str(reduction), ['mean', 'sum', 'none'])}"
            )


def _require_same_shape(outputs: Array, targets: Array, loss: str) -> None:
    # Broadcasting [n, 1] against [n] gives an [n, n] table and a plausible-looking number.
    if outputs.shape != targets.shape:
        raise ValueError(
            f"{loss} needs outputs and targets of one shape, got {list(outputs.shape)} and {list(targets.shape)}. "
            "Reshape the targets, or the model's last axis."
        )


@typed
def cross_entropy(outputs: Float[Array, "n way"], targets: Int[Array, "n"], *, reduction: str) -> Float[Array, "..."]:
    r"""Cross-entropy of integer labels under logits.

    $$\ell_i = \log\sum_c \exp z_{ic} - z_{i y_i}$$

    **Arguments:**

    - `outputs`: logits $z$, `[n, way]`; log-probabilities count as logits.
    - `targets`: labels $y$ in `0..way-1`, `[n]` integers.
    - `reduction`: `"mean"`, `"sum"` or `"none"`; no default, since it is part of a published result.

    **Returns:** a scalar, or `[n]` for `"none"`. A label outside the range gives NaN, and a gradient of NaN, never
    another class's loss.

    **Raises:** `ValueError` for an unknown reduction; a type-check error for targets that are not integers.

    >>> import jax.numpy as jnp
    >>> float(cross_entropy(jnp.zeros((3, 4)), jnp.arange(3), reduction="sum") / 3 / jnp.log(4.0)).__round__(4)
    1.0
    """
    log_probabilities = jax.nn.log_softmax(outputs, axis=-1)
    chosen = jnp.take_along_axis(log_probabilities, targets[:, None], axis=-1, mode="clip")[:, 0]
    inside = (targets >= 0) & (targets < outputs.shape[1])
    # A factor rather than a choice: the gradient, which is all that an inner loop sees, is NaN then, too.
    one_or_nan = jnp.where(inside, jnp.ones((), outputs.dtype), jnp.full((), jnp.nan, outputs.dtype))
    return _reduce(-chosen * one_or_nan, reduction)


@typed
def squared_error(
    outputs: Float[Array, "n *out"], targets: Float[Array, "n *out"], *, reduction: str
) -> Float[Array, "..."]:
    r"""Squared error, averaged over the axes of one target; no factor one half.

    $$\ell_i = \frac{1}{d}\sum_{j=1}^{d} (\hat y_{ij} - y_{ij})^2$$

    **Arguments:**

    - `outputs`, `targets`: `[n, *out]`, of the same shape.
    - `reduction`: `"mean"`, `"sum"` or `"none"` over the `n` examples.

    **Returns:** a scalar, or `[n]` for `"none"`.

    **Raises:** `ValueError` for an unknown reduction; a type-check error where the shapes differ.

    >>> import jax.numpy as jnp
    >>> float(squared_error(jnp.ones((3, 2)), jnp.zeros((3, 2)), reduction="mean"))
    1.0
    """
    _require_same_shape(outputs, targets, "squared_error")
    squares = jnp.square(outputs - targets)
    return _reduce(jnp.mean(squares.reshape(squares.shape[0], -1), axis=1), reduction)


@typed
def gaussian_nll(
    outputs: Float[Array, "n *out two"], targets: Float[Array, "n *out"], *, reduction: str
) -> Float[Array, "..."]:
    r"""Negative log-density of real targets under independent Gaussians.

    $$\ell_i = \frac{1}{d}\sum_{j=1}^{d}\left[\tfrac12\log 2\pi + \log\sigma_{ij}
      + \frac{(y_{ij}-\mu_{ij})^2}{2\sigma_{ij}^2}\right]$$

    **Arguments:**

    - `outputs`: `[n, *out, 2]`, the mean $\mu$ and the logarithm of the standard deviation $\log\sigma$.
    - `targets`: `[n, *out]`.
    - `reduction`: `"mean"`, `"sum"` or `"none"` over the `n` examples.

    **Returns:** nats, a scalar, or `[n]` for `"none"`.

    **Raises:** `ValueError` for an unknown reduction, or where the last axis of `outputs` is not 2.

    >>> import jax.numpy as jnp
    >>> round(float(gaussian_nll(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1)), reduction="mean")), 4)
    0.9189
    """
    if outputs.shape[-1] != 2:
        raise ValueError(
            f"gaussian_nll needs (mean, log standard deviation) along the last axis of outputs, got size "
            f"{outputs.shape[-1]} in shape {list(outputs.shape)}."
        )
    mean, log_scale = outputs[..., 0], outputs[..., 1]
    residual = (targets - mean) * jnp.exp(-log_scale)
    half_log_two_pi = jnp.asarray(0.5 * jnp.log(2 * jnp.pi), outputs.dtype)
    nats = half_log_two_pi + log_scale + 0.5 * jnp.square(residual)
    return _reduce(jnp.mean(nats.reshape(nats.shape[0], -1), axis=1), reduction)
