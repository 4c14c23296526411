"""MetaGAN over MAML."""

import dataclasses
from typing import Any

import jax

from metakit import losses, nn
from metakit.experiments import Experiment
from metakit.inner import SGD
from metakit.learners import maml, metagan as learner_of

from .parts import (
    GRADIENT,
    ON_OTHER_DATA,
    Adam,
    Budget,
    Folder,
    Glyphs,
    InnerLoop,
    Norm,
    Omniglot,
    OneWay,
    adapted_at_length,
    against_a_generator,
    image_network,
    on_episodes,
    recipe,
    two_players,
    with_test_steps,
)

ABOUT = "MetaGAN over MAML, which adapts to fakes too (Zhang et al. 2018)"


@recipe(ABOUT, omniglot=ON_OTHER_DATA["omniglot"] | {"steps": 20_000, "validate_every": 2000})
def metagan_maml(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: OneWay = OneWay(),
    norm: Norm = Norm(),
    inner: InnerLoop = GRADIENT.inner,
    outer: Adam = GRADIENT.outer,
    budget: Budget = GRADIENT.budget,
) -> Experiment:
    """MetaGAN over MAML, which adapts to a generator's fakes too: the published form.

    The weights are those over Prototypical Networks; no others were tried."""
    parts = data.load(tasks, seed=budget.seed)
    base_key, *keys = jax.random.split(jax.random.key(budget.seed), 3)
    base = maml.MAML(
        image_network(parts.shape, tasks.way, nn.maml_norm, base_key),
        inner=SGD(inner.inner_rate),
        num_steps=inner.inner_steps,
        loss=losses.cross_entropy,
        norm_policy=norm.norm_policy,  # pyright: ignore[reportArgumentType] - MAML refuses what it has not
    )
    loss = learner_of.DiscriminatorLoss(unlabelled_weight=0.2, fake_weight=0.2)
    learner = against_a_generator(maml, base, parts.shape, tasks.way, *keys, adapt_to_fakes=True, loss=loss)
    what, tuned = adapted_at_length(base)
    # Without fakes: their generator was not trained either.
    untrained = learner_of.without_generator(dataclasses.replace(learner, base=tuned))
    return on_episodes(
        learner_of,
        learner,
        ABOUT,
        parts,
        tasks,
        norm,
        outer,
        budget,
        notes=(inner.in_words,),
        optimiser=two_players(outer, budget.steps),
        as_tested=with_test_steps(_with_num_steps, inner),
        untrained=(f"{what}, without fakes", untrained),
    )


def _with_num_steps(learner: Any, num_steps: int) -> Any:
    """The steps of its base, MAML."""
    return dataclasses.replace(learner, base=maml.with_num_steps(learner.base, num_steps))
