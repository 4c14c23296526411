"""MetaGAN over Prototypical Networks."""

import jax

from metakit._hyperparameter import learned
from metakit.experiments import Experiment
from metakit.learners import metagan as learner_of, prototypical

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
    against_a_generator,
    embedding,
    on_episodes,
    recipe,
    two_players,
)

ABOUT = "MetaGAN over Prototypical Networks (Zhang et al. 2018)"


@recipe(ABOUT, folder=ON_FOLDER, omniglot=ON_OMNIGLOT | {"steps": 4000})
def metagan(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: AnyWay = METRIC.tasks,
    norm: Norm = METRIC.norm,
    outer: Adam = METRIC.outer,
    budget: Budget = METRIC.budget,
) -> Experiment:
    """MetaGAN over Prototypical Networks: a classifier that learns to tell a generator's fakes apart.

    Telling fakes apart weighs a fifth of telling classes apart: with equal weights, and a generator at a tenth of the
    classifier's rate, it ended below Prototypical Networks (docs/results.md). The offset is there because the logits of
    Prototypical Networks are never positive."""
    parts = data.load(tasks, seed=budget.seed)
    base_key, *keys = jax.random.split(jax.random.key(budget.seed), 3)
    embed, _ = embedding(parts.shape, base_key)
    base = prototypical.Prototypical(embed, norm_policy=norm.norm_policy)
    loss = learner_of.DiscriminatorLoss(unlabelled_weight=0.2, fake_weight=0.2, offset=learned(5.0))
    learner = against_a_generator(prototypical, base, parts.shape, tasks.way, *keys, adapt_to_fakes=False, loss=loss)
    optimiser = two_players(outer, budget.steps)
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget, optimiser=optimiser)
