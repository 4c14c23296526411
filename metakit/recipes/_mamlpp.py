"""MAML++."""

import functools
from typing import Any

import equinox as eqx

from metakit import nn
from metakit.experiments import Experiment
from metakit.learners import maml

from .parts import (
    GRADIENT,
    ON_OTHER_DATA,
    Adam,
    Budget,
    Folder,
    Glyphs,
    InnerLoop,
    Lines,
    Norm,
    Omniglot,
    OneWay,
    Points,
    gradient_based,
    recipe,
)

ABOUT = "MAML++ (Antoniou et al. 2019)"
_ON_LINES = {"inner_steps": 5, "test_inner_steps": 5}
PUBLISHED = {
    "omniglot": ON_OTHER_DATA["omniglot"] | {"inner_rate": 0.5},
    "sinusoid": ON_OTHER_DATA["sinusoid"] | _ON_LINES,
    "linear": ON_OTHER_DATA["linear"] | _ON_LINES,
}


@recipe(ABOUT, **PUBLISHED)
def mamlpp(
    data: Glyphs | Omniglot | Folder | Lines = Glyphs(),
    tasks: OneWay | Points = OneWay(),
    norm: Norm | None = Norm(),
    inner: InnerLoop = InnerLoop(inner_rate=0.5, inner_steps=3, test_inner_steps=3),
    outer: Adam = GRADIENT.outer,
    budget: Budget = GRADIENT.budget,
) -> Experiment:
    """MAML++: rates for each layer and step, and losses after each step."""
    steps = inner.inner_steps
    # All inner steps count at first, only the last from a quarter of the training on.
    weights = eqx.Partial(_with_step_weights, num_steps=steps, decay_steps=max(budget.steps // 4, 1))
    options = {"learns_rates": True, "image_norm": functools.partial(nn.PerStepNorm, steps), "anneal": weights}
    return gradient_based(maml.mamlpp, ABOUT, data, tasks, norm, inner, outer, budget, **options)


def _with_step_weights(learner: Any, step: Any, *, num_steps: int, decay_steps: int) -> Any:
    weights = maml.multi_step_weights(step, num_steps, decay_steps)
    return maml.with_step_weights(learner, weights.astype(learner.step_weights.value.dtype))
