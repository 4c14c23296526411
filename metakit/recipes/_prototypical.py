"""Prototypical Networks."""

from typing import Annotated

import jax

from metakit.experiments import Experiment
from metakit.learners import prototypical as learner_of

from .parts import (
    HELD,
    METRIC,
    ON_FOLDER,
    ON_OMNIGLOT,
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
    require_positive,
)

ABOUT = "Prototypical Networks (Snell et al. 2017)"


@recipe(ABOUT, folder=ON_FOLDER, omniglot=ON_OMNIGLOT | {"way": 60})
def prototypical(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: AnyWay = METRIC.tasks,
    norm: Norm = METRIC.norm,
    scale: Annotated[float, HELD] = 1.0,
    outer: Adam = METRIC.outer,
    budget: Budget = METRIC.budget,
) -> Experiment:
    """Prototypical Networks: the nearest mean of each class's embeddings.

    **Arguments:** `scale`, the factor of the similarities before the softmax; the groups of options say theirs.
    """
    require_positive(scale=scale)
    parts = data.load(tasks, seed=budget.seed)
    embed, _ = embedding(parts.shape, jax.random.key(budget.seed))
    learner = learner_of.Prototypical(embed, scale=scale, norm_policy=norm.norm_policy)
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget)
