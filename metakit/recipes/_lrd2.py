"""LR-D2."""

from typing import Annotated

import jax

from metakit._hyperparameter import learned
from metakit.experiments import Experiment
from metakit.learners import ridge

from .parts import (
    HELD,
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
    require_positive,
)

ABOUT = "LR-D2, logistic regression by Newton steps (Bertinetto et al. 2019)"


@recipe(ABOUT, folder=ON_FOLDER, omniglot=LONGER_ON_OMNIGLOT)
def lrd2(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: AnyWay = METRIC.tasks,
    norm: Norm = METRIC.norm,
    scale: Annotated[float, HELD] = 10.0,
    outer: Adam = METRIC.outer,
    budget: Budget = METRIC.budget,
) -> Experiment:
    """LR-D2: a logistic regression on embeddings, by Newton steps.

    **Arguments:** `scale`, the factor of the similarities before the softmax; the groups of options say theirs.
    """
    require_positive(scale=scale)
    parts = data.load(tasks, seed=budget.seed)
    embed, _ = embedding(parts.shape, jax.random.key(budget.seed))
    learner = ridge.lrd2(embed, scale=learned(scale), norm_policy=norm.norm_policy)
    return on_episodes(ridge, learner, ABOUT, parts, tasks, norm, outer, budget)
