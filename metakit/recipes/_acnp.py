"""A Conditional Neural Process with attention."""

from metakit.experiments import Experiment

from .parts import CURVES, Adam, Budget, GaussianProcess, Points, neural_process_on_curves, recipe

ABOUT = "a Conditional Neural Process with attention"


@recipe(ABOUT)
def acnp(
    data: GaussianProcess = GaussianProcess(),
    tasks: Points = CURVES.points,
    outer: Adam = CURVES.outer,
    budget: Budget = CURVES.budget,
) -> Experiment:
    """A Conditional Neural Process with attention."""
    return neural_process_on_curves(ABOUT, data, tasks, outer, budget, attention="multihead")
