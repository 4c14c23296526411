"""An Attentive Neural Process."""

from metakit.experiments import Experiment

from .parts import CURVES, Adam, Budget, GaussianProcess, Points, neural_process_on_curves, recipe

ABOUT = "an Attentive Neural Process (Kim et al. 2019)"


@recipe(ABOUT)
def anp(
    data: GaussianProcess = GaussianProcess(),
    tasks: Points = CURVES.points,
    outer: Adam = CURVES.outer,
    budget: Budget = CURVES.budget,
) -> Experiment:
    """An Attentive Neural Process: attention and a latent variable."""
    return neural_process_on_curves(ABOUT, data, tasks, outer, budget, latent=True, attention="multihead")
