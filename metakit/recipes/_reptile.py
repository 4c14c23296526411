"""Reptile."""

import dataclasses
from typing import Any

import jax
import optax

from metakit import nn
from metakit.experiments import Experiment
from metakit.inner import Optax
from metakit.learners import reptile as learner_of

from .parts import (
    EVERY_CORE,
    MORE_TASKS,
    Budget,
    Folder,
    Glyphs,
    InnerLoop,
    Norm,
    Omniglot,
    OneWay,
    on_episodes,
    published_norm,
    recipe,
    require_least,
    require_positive,
)

ABOUT = "Reptile (Nichol et al. 2018)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowardsSolutions:
    """The outer loop."""

    rate: float = 1.0
    """The part of the way to the tasks' solutions that a step goes; it falls to 0 along a line."""

    def __post_init__(self):
        require_positive(rate=self.rate)

    def optimiser(self, steps: int) -> optax.GradientTransformation:
        """Reptile's published outer step."""
        return optax.sgd(optax.linear_schedule(self.rate, 0.0, steps))


@recipe(ABOUT, omniglot={"test_queries": 15, "meta_batch": 4, "steps": 40_000, "validate_every": 4000, **MORE_TASKS})
def reptile(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: OneWay = OneWay(shot=10, test_shot=1, queries=1),
    norm: Norm = Norm(norm_policy="inductive"),
    inner: InnerLoop = InnerLoop(inner_rate=3e-3, inner_steps=5, test_inner_steps=50),
    inner_batch: int = 10,
    outer: TowardsSolutions = TowardsSolutions(),
    budget: Budget = Budget(steps=1200, meta_batch=8, validate_every=300, devices=EVERY_CORE),
) -> Experiment:
    """Reptile: a step towards the solutions of tasks, without a gradient through them.

    Its network pools where the published one strides, which is worth more than its time (docs/results.md). Its inner
    rule is Adam without momentum, whose second moments live on from task to task as in the released code.

    **Arguments:** `inner_batch`, the support examples in an inner step; the groups of options say what theirs are.
    """
    require_least({"inner_batch": 1}, {"inner_batch": inner_batch})
    parts = data.load(tasks, seed=budget.seed)
    width = 64 if parts.shape == (1, 28) else 32
    key = jax.random.key(budget.seed)
    learner = learner_of.Reptile(
        nn.Conv4(*parts.shape, out_size=tasks.way, width=width, norm=published_norm, key=key),
        inner=Optax(optax.rmsprop, learning_rate=inner.inner_rate, decay=0.999, initial_scale=1e-4),
        num_steps=inner.inner_steps,
        batch_size=inner_batch,
        norm_policy=norm.norm_policy,
    )
    way, shot, _ = tasks.of_test

    def as_tested(learner: Any) -> Any:
        """More steps, and batches of no more examples than there are."""
        learner = learner_of.with_num_steps(learner, inner.in_test)
        return learner_of.with_batch_size(learner, None if way * shot <= inner_batch else inner_batch)

    return on_episodes(
        learner_of,
        learner_of.with_carried_state(learner),
        ABOUT,
        parts,
        tasks,
        norm,
        outer,
        budget,
        notes=(inner.in_words,),
        as_tested=as_tested,
    )
