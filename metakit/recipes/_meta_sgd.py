"""Meta-SGD."""

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

ABOUT = "a learned rate per parameter (Li et al. 2017)"


@recipe(ABOUT, **ON_OTHER_DATA)
def meta_sgd(
    data: Glyphs | Omniglot | Folder | Lines = Glyphs(),
    tasks: OneWay | Points = OneWay(),
    norm: Norm | None = Norm(),
    inner: InnerLoop = InnerLoop(inner_rate=1.0, test_inner_steps=1),
    outer: Adam = GRADIENT.outer,
    budget: Budget = GRADIENT.budget,
) -> Experiment:
    """Meta-SGD: a learned inner rate for each parameter."""
    return gradient_based(maml.meta_sgd, ABOUT, data, tasks, norm, inner, outer, budget, learns_rates=True)
