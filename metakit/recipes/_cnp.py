"""A Conditional Neural Process."""

from metakit.experiments import Experiment

from .parts import CURVES, Adam, Budget, GaussianProcess, Points, neural_process_on_curves, recipe

ABOUT = "a Conditional Neural Process (Garnelo et al. 2018)"


@recipe(ABOUT)
def cnp(
    data: GaussianProcess = GaussianProcess(),
    tasks: Points = CURVES.points,
    outer: Adam = CURVES.outer,
    budget: Budget = CURVES.budget,
) -> Experiment:
    """A Conditional Neural Process: a curve's distribution from the mean of its points' embeddings."""
    return neural_process_on_curves(ABOUT, data, tasks, outer, budget)
