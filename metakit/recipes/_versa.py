"""VERSA."""

import jax

from metakit.experiments import Experiment
from metakit.learners import versa as learner_of

from .parts import (
    LONGER_ON_OMNIGLOT,
    METRIC,
    ON_FOLDER,
    Adam,
    AnyWay,
    Budget,
    Folder,
    Glyphs,
    Norm,
    Omniglot,
    embedding,
    on_episodes,
    recipe,
)

ABOUT = "VERSA (Gordon et al. 2019)"


@recipe(ABOUT, folder=ON_FOLDER, omniglot=LONGER_ON_OMNIGLOT | {"rate": 1e-3, "steps": 8000})
def versa(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: AnyWay = METRIC.tasks,
    norm: Norm = Norm(),
    outer: Adam = METRIC.outer,
    budget: Budget = METRIC.budget,
) -> Experiment:
    """VERSA: a network that writes the distribution of a classifier's weights."""
    parts = data.load(tasks, seed=budget.seed)
    embed_key, amortiser_key = jax.random.split(jax.random.key(budget.seed))
    embed, features = embedding(parts.shape, embed_key)
    amortiser = learner_of.Amortiser(features, key=amortiser_key)
    learner = learner_of.Versa(embed, amortiser, norm_policy=norm.norm_policy)
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget)
