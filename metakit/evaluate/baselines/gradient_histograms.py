"""Histograms of oriented gradients and logistic regression: a classifier of images that learns nothing across tasks.

An algorithm without a learner: pass `None` for it. What a meta-learner of images must beat to be worth its training.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._episode import Episode, Examples, require_one_input, require_unmasked
from metakit._typecheck import typed
from metakit._types import Scalar
from metakit.losses import cross_entropy

_ORIENTATIONS = 9
# Cells a side: 4 pixels each for images of 28. On 600 5-way 1-shot episodes of Glyphs' validation classes 7 cells reach
# 84.2 %, 6 cells 83.0 and 8 cells 83.9; without votes for neighbouring cells 7 reach 82.9.
_CELLS = 7
# Of the sum of the losses against half the squared weights. On these classes 10 is 0.1 points better than 1 with one
# shot and 0.5 with five; 100 is not better with one and 0.2 with five, for three times the steps.
_FIT = 10.0
# As many steps as shrink the distance to the solution, along the slowest direction, by this factor.
_CLOSER = 1e6


class Adapted(eqx.Module):
    """A linear classifier on gradient histograms.

    **Arguments:** `mean`, what the histograms are centred by; `weights`, for each feature and class.

    >>> Adapted(jnp.zeros(1296), jnp.zeros((1296, 5))).weights.shape
    (1296, 5)
    """

    mean: Float[Array, " features"]
    weights: Float[Array, "features way"]


@typed
def features(x: Float[Array, "n c h w"]) -> Float[Array, "n features"]:
    r"""Histograms of oriented gradients.

    $$h_{ijb} = \sum_p \Lambda(r_p - i)\, \Lambda(c_p - j)\, \Lambda(\theta_p / \Delta - b)\, \lVert \nabla x_p \rVert,
      \qquad \Lambda(u) = \max(0, 1 - |u|)$$

    over 7 x 7 cells $i, j$ and the unsigned orientations $b = 0, \dots, 8$ (circular, $\Delta = \pi / 9$): a pixel at
    row $r_p$ and column $c_p$, counted in cells from the middle of the first, votes for the two nearest cells each way
    and the two nearest orientations. Blocks of 2 x 2 cells are normalised to length 1.

    **Arguments:** `x`, images `[n, channels, height, width]` in 0..1, of at least 8 pixels a side; of several channels
    the one with the steepest gradient counts at each pixel.

    **Returns:** `[n, 1296]`, 36 blocks of 4 cells of 9 orientations, whatever the size of the images.

    **Raises:** `ValueError` for images of less than 8 pixels a side.

    **Source:** Dalal and Triggs 2005, *Histograms of Oriented Gradients for Human Detection*,
    https://doi.org/10.1109/CVPR.2005.177; without its Gaussian window over a block and its clipping of large values,
    and with as many cells for a large image as for a small one.

    >>> features(jnp.zeros((2, 1, 28, 28))).shape
    (2, 1296)
    """
    height, width = x.shape[2:]
    if min(height, width) < 8:
        raise ValueError(f"x must be images of at least 8 pixels a side, got {height}x{width}.")
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    right = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    steepest = jnp.argmax(down**2 + right**2, axis=1)[:, None]
    down, right = (jnp.take_along_axis(g, steepest, axis=1)[:, 0] for g in (down, right))
    length = jnp.sqrt(down**2 + right**2)
    angle = jnp.mod(jnp.arctan2(down, right), math.pi) / (math.pi / _ORIENTATIONS)
    bins = jnp.arange(_ORIENTATIONS, dtype=x.dtype)[None, None, None]
    apart = jnp.abs(angle[..., None] - bins)
    votes = length[..., None] * _hat(jnp.minimum(apart, _ORIENTATIONS - apart))
    cells = jnp.einsum("nhwb,ih,jw->nijb", votes, _near(height, x.dtype), _near(width, x.dtype))
    corners = [cells[:, i : _CELLS - 1 + i, j : _CELLS - 1 + j] for i in (0, 1) for j in (0, 1)]
    blocks = jnp.concatenate(corners, axis=-1)
    blocks = blocks / jnp.sqrt(jnp.sum(blocks**2, axis=-1, keepdims=True) + 1e-4)
    return blocks.reshape(len(x), -1)


def _near(pixels: int, dtype: Any) -> Float[Array, "cells pixels"]:
    """How much the pixels of a row vote for each of its cells."""
    position = (jnp.arange(pixels, dtype=dtype) + 0.5) * (_CELLS / pixels) - 0.5
    return _hat(position[None] - jnp.arange(_CELLS, dtype=dtype)[:, None])


def _hat(distance: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(0, 1 - jnp.abs(distance))


@typed
def adapt(learner: Any, support: Examples, key: Any = None) -> Adapted:
    r"""Fit a logistic regression to the support set's histograms, centred and of length 1.

    $$W = \arg\min_W\; \lambda \sum_i \ell\bigl(W^\top z_i, y_i\bigr) + \tfrac12 \lVert W \rVert^2, \quad \lambda = 10$$

    **Arguments:** `learner` and `key` are not used; `support`, images `[n, channels, height, width]` with a `way`.

    **Returns:** an `Adapted`; its weights are NaN where a label is no class.

    **Raises:** `ValueError` for a support set without a `way`, or whose inputs are no images of at least 8 pixels a
    side.

    >>> import metakit as mk
    >>> support = mk.Examples(jnp.ones((2, 1, 28, 28)), jnp.array([0, 1]), way=2)
    >>> adapt(None, support).weights.shape
    (1296, 2)
    """
    del learner, key
    require_one_input(support, "gradient_histograms", "support")
    if support.way is None:
        raise ValueError("gradient_histograms needs class labels, got a support set whose way is None (real targets).")
    if support.x.ndim != 4 or not jnp.issubdtype(support.x.dtype, jnp.floating):
        raise ValueError(
            "gradient_histograms needs floating-point images [n, channels, height, width], got "
            f"{support.x.dtype}{list(support.x.shape)}."
        )
    z = features(support.x)
    mean = jnp.mean(z, axis=0)
    z = _unit(z - mean[None])
    target = jax.nn.one_hot(support.y, support.way, dtype=z.dtype)
    # A label that is no class: compiled code cannot raise, so the score shows it.
    target = jnp.where(jnp.all(jnp.any(target > 0, axis=1)), target, jnp.full_like(target, jnp.nan))
    # The weights are combinations of the examples, W = Zᵀ A, so the steps need no more than their inner products.
    products = z @ z.T
    # Nesterov's method, for a loss that is 1-strongly convex and whose gradient is Lipschitz with 1 + λ n / 2.
    root = math.sqrt(1 + _FIT * len(z) / 2)
    momentum = (root - 1) / (root + 1)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        coefficients, ahead = state
        gradient = _FIT * (jax.nn.softmax(products @ ahead, axis=-1) - target) + ahead
        new = ahead - gradient / root**2
        return (new, new + momentum * (new - coefficients)), None

    start = jnp.zeros_like(target)
    (coefficients, _), _ = jax.lax.scan(step, (start, start), None, length=math.ceil(root * math.log(_CLOSER)))
    return Adapted(mean, z.T @ coefficients)


@typed
def predict(adapted: Adapted, x: Float[Array, "n c h w"], key: Any = None) -> Float[Array, "n way"]:
    """Logits of the classes.

    **Arguments:** `adapted`, from `adapt`; `x`, images `[n, channels, height, width]`; `key` is not used.

    **Returns:** logits `[n, way]`.

    **Raises:** `ValueError` for images of less than 8 pixels a side.

    >>> import metakit as mk
    >>> support = mk.Examples(jnp.ones((2, 1, 28, 28)), jnp.array([0, 1]), way=2)
    >>> predict(adapt(None, support), jnp.ones((3, 1, 28, 28))).shape
    (3, 2)
    """
    del key
    return _unit(features(x) - adapted.mean[None]) @ adapted.weights


def _unit(z: Float[Array, "n features"]) -> Float[Array, "n features"]:
    return z / jnp.sqrt(jnp.sum(z**2, axis=-1, keepdims=True) + 1e-12)


@typed
def meta_loss(learner: Any, task: Episode, key: Any = None) -> Scalar:
    """Mean cross-entropy of the query set; a score only, since nothing here can be trained.

    **Arguments:** `learner` and `key` are not used; `task`, an episode of images with class labels.

    **Returns:** nats per query.

    **Raises:** as `adapt`, and `ValueError` for a masked query set.

    >>> import metakit as mk
    >>> examples = mk.Examples(jnp.ones((2, 1, 28, 28)), jnp.array([0, 1]), way=2)
    >>> round(float(meta_loss(None, mk.Episode(examples, examples))), 3)
    0.693
    """
    require_unmasked(task.query, "gradient_histograms", "query")
    logits = predict(adapt(learner, task.support, key), task.query.x, key)
    return cross_entropy(logits, task.query.y, reduction="mean")
