"""Relation Networks."""

import jax

from metakit import nn
from metakit.experiments import Experiment
from metakit.learners import relation as learner_of

from .parts import (
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
    on_episodes,
    recipe,
)

ABOUT = "Relation Networks (Sung et al. 2018)"


@recipe(ABOUT, folder=ON_FOLDER, omniglot=ON_OMNIGLOT)
def relation(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: AnyWay = METRIC.tasks,
    norm: Norm = Norm(),
    outer: Adam = METRIC.outer,
    budget: Budget = METRIC.budget,
) -> Experiment:
    """Relation Networks: a network that compares."""
    parts = data.load(tasks, seed=budget.seed)
    embed_key, relation_key = jax.random.split(jax.random.key(budget.seed))
    embed = nn.RelationEmbedding(*parts.shape, key=embed_key)
    module = nn.RelationModule(64, embed.map_size, key=relation_key)
    learner = learner_of.Relation(embed, module, norm_policy=norm.norm_policy)
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget)
