"""SNAIL."""

import jax

from metakit.experiments import Experiment
from metakit.learners import snail as learner_of

from .parts import (
    METRIC,
    ON_FOLDER,
    ON_OMNIGLOT,
    Adam,
    Budget,
    Folder,
    Glyphs,
    Norm,
    Omniglot,
    OneWay,
    embedding,
    on_episodes,
    recipe,
)

ABOUT = "SNAIL (Mishra et al. 2018)"


@recipe(ABOUT, folder=ON_FOLDER, omniglot=ON_OMNIGLOT | {"steps": 20_000, "validate_every": 2000})
def snail(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: OneWay = OneWay(),
    norm: Norm = METRIC.norm,
    outer: Adam = Adam(rate=1e-3, schedule="cosine"),
    budget: Budget = Budget(steps=300, meta_batch=8, validate_every=100),
) -> Experiment:
    """SNAIL: attention and temporal convolutions over the episode as a sequence."""
    parts = data.load(tasks, seed=budget.seed)
    embed_key, trunk_key = jax.random.split(jax.random.key(budget.seed))
    embed, features = embedding(parts.shape, embed_key)
    learner = learner_of.few_shot(
        embed,
        features,
        way=tasks.way,
        shot=max(tasks.shot, tasks.of_test[1]),
        norm_policy=norm.norm_policy,
        random_shot=tasks.shot > 1,
        key=trunk_key,
    )
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget, in_random_order=True)
