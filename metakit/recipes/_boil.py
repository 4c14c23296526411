"""BOIL."""

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

ABOUT = "only the body adapts (Oh et al. 2021)"


@recipe(ABOUT, **ON_OTHER_DATA)
def boil(
    data: Glyphs | Omniglot | Folder | Lines = Glyphs(),
    tasks: OneWay | Points = OneWay(),
    norm: Norm | None = Norm(),
    inner: InnerLoop = GRADIENT.inner,
    outer: Adam = GRADIENT.outer,
    budget: Budget = GRADIENT.budget,
) -> Experiment:
    """BOIL: only the body adapts."""
    return gradient_based(maml.boil, ABOUT, data, tasks, norm, inner, outer, budget)
