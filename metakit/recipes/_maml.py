"""MAML, second order."""

from metakit.experiments import Experiment
from metakit.learners import maml as maml_learner

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

ABOUT = "MAML, second order (Finn et al. 2017)"


@recipe(ABOUT, **ON_OTHER_DATA)
def maml(
    data: Glyphs | Omniglot | Folder | Lines = Glyphs(),
    tasks: OneWay | Points = OneWay(),
    norm: Norm | None = Norm(),
    inner: InnerLoop = GRADIENT.inner,
    outer: Adam = GRADIENT.outer,
    budget: Budget = GRADIENT.budget,
) -> Experiment:
    """MAML, second order: the start of a few gradient steps, learned through them."""
    return gradient_based(maml_learner.MAML, ABOUT, data, tasks, norm, inner, outer, budget)
