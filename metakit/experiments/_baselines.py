"""Baselines that fit what a task looks like."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit.evaluate import baselines

from ._experiment import Experiment
from ._scores import MetricScores

# A histogram of gradients has cells of several pixels.
_LEAST_SIDE = 8


def fitting_baselines(experiment: Experiment) -> dict[str, tuple[Any, Any]]:
    """For classes the nearest neighbour, for images histograms of gradients too; for anything else none."""
    if not (isinstance(experiment.scores, MetricScores) and experiment.scores.of_classes):
        return {}
    task = eqx.filter_eval_shape(experiment.test, jax.random.key(0))
    images = is_image(task.query.x)
    found = {f"nearest neighbour on {'pixels' if images else 'inputs'}": (baselines.nearest_neighbour, None)}
    if images and min(task.query.x.shape[-2:]) >= _LEAST_SIDE:
        found["gradient histograms, logistic regression"] = (baselines.gradient_histograms, None)
    return found


def is_image(x: Any) -> bool:
    """Whether inputs are pictures `[n, channels, height, width]` in grey or colour."""
    return (
        hasattr(x, "shape")
        and len(x.shape) == 4
        and x.shape[1] in (1, 3)
        and min(x.shape[2:]) > 1
        and jnp.issubdtype(x.dtype, jnp.floating)
    )
