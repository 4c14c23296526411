"""A Neural Process."""

from metakit.experiments import Experiment

from .parts import CURVES, Adam, Budget, GaussianProcess, Points, neural_process_on_curves, recipe

ABOUT = "a Neural Process (Garnelo et al. 2018)"


@recipe(ABOUT)
def np(
    data: GaussianProcess = GaussianProcess(),
    tasks: Points = CURVES.points,
    outer: Adam = CURVES.outer,
    budget: Budget = CURVES.budget,
) -> Experiment:
    """A Neural Process: a Conditional Neural Process with a latent variable."""
    return neural_process_on_curves(ABOUT, data, tasks, outer, budget, latent=True)
