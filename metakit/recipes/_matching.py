"""Matching Networks."""

from typing import Annotated

import jax

from metakit import experiments, losses
from metakit._hyperparameter import learned
from metakit.experiments import Experiment, Words
from metakit.learners import matching as learner_of

from .parts import (
    HELD,
    METRIC,
    NO_NORM,
    ON_FOLDER,
    ON_OMNIGLOT,
    ON_OTHER_DATA,
    Adam,
    AnyWay,
    Budget,
    Folder,
    Glyphs,
    Lines,
    Norm,
    Omniglot,
    Points,
    embedding,
    on_episodes,
    recipe,
    require_positive,
)

ABOUT = "Matching Networks (Vinyals et al. 2016)"
_ON_LINES = {name: value for name, value in ON_OTHER_DATA["linear"].items() if "inner" not in name}


@recipe(ABOUT, folder=ON_FOLDER, omniglot=ON_OMNIGLOT, sinusoid=_ON_LINES, linear=_ON_LINES)
def matching(
    data: Glyphs | Omniglot | Folder | Lines = Glyphs(),
    tasks: AnyWay | Points = METRIC.tasks,
    norm: Norm | None = METRIC.norm,
    scale: Annotated[float, HELD] = 10.0,
    outer: Adam = METRIC.outer,
    budget: Budget = METRIC.budget,
) -> Experiment:
    """Matching Networks: attention over the support set.

    **Arguments:** `scale`, the factor of the similarities before the softmax; the groups of options say theirs.
    """
    require_positive(scale=scale)
    key, held = jax.random.key(budget.seed), learned(scale)
    if isinstance(data, Lines):
        assert isinstance(tasks, Points)
        embed, _ = embedding(None, key)
        train, val, test = (data.sampler(counts) for counts in (tasks.of_training, tasks.of_test, tasks.of_test))
        return Experiment(
            learner_of,
            learner_of.Matching(embed, scale=held, loss=losses.squared_error, norm_policy="transductive"),
            outer.optimiser(budget.steps),
            train=train,
            val=val,
            test=test,
            scores=experiments.mean_squared_error(),
            words=Words(f"{ABOUT} on {data.data}", data.about, data.task_in_words(tasks), NO_NORM),
            **data.shown(tasks),
            **budget.of_experiment,
        )
    assert isinstance(tasks, AnyWay)
    assert norm is not None
    parts = data.load(tasks, seed=budget.seed)
    embed, _ = embedding(parts.shape, key)
    learner = learner_of.Matching(embed, scale=held, loss=losses.cross_entropy, norm_policy=norm.norm_policy)
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget)
