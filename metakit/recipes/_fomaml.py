"""First-order MAML."""

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

ABOUT = "first-order MAML (Finn et al. 2017)"


@recipe(ABOUT, **ON_OTHER_DATA)
def fomaml(
    data: Glyphs | Omniglot | Folder | Lines = Glyphs(),
    tasks: OneWay | Points = OneWay(),
    norm: Norm | None = Norm(),
    inner: InnerLoop = GRADIENT.inner,
    outer: Adam = GRADIENT.outer,
    budget: Budget = GRADIENT.budget,
) -> Experiment:
    """First-order MAML: the inner gradients count as constants."""
    return gradient_based(maml.fomaml, ABOUT, data, tasks, norm, inner, outer, budget)
