"""The Meta-Learner LSTM."""

import dataclasses
import math
from typing import Annotated

import jax

from metakit import nn
from metakit.experiments import Experiment
from metakit.learners import meta_lstm as learner_of

from .parts import (
    EVERY_CORE,
    HELD,
    MORE_TASKS,
    Adam,
    Budget,
    Folder,
    Glyphs,
    InnerSteps,
    Norm,
    Omniglot,
    OneWay,
    OptionError,
    on_episodes,
    published_norm,
    recipe,
    require_positive,
    with_test_steps,
)

ABOUT = "the Meta-Learner LSTM (Ravi and Larochelle 2017)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate(InnerSteps):
    """The inner loop."""

    inner_rate: Annotated[float, HELD] = 0.5
    """Where the input gate starts, above 0 and below 1."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(inner_rate=self.inner_rate)
        if self.inner_rate >= 1:
            raise OptionError(
                f"--inner-rate must be below 1 for meta-lstm, whose input gate is a sigmoid; got {self.inner_rate}."
            )


@recipe(ABOUT, omniglot={"test_queries": 15, "steps": 20_000, "validate_every": 2000, **MORE_TASKS})
def meta_lstm(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: OneWay = OneWay(queries=5),
    norm: Norm = Norm(),
    inner: Gate = Gate(inner_steps=2, test_inner_steps=2),
    outer: Adam = Adam(rate=2e-3, schedule="cosine", clip_norm=0.25),
    budget: Budget = Budget(steps=1200, meta_batch=4, validate_every=300, devices=EVERY_CORE),
) -> Experiment:
    """The Meta-Learner LSTM: an update rule that is itself an LSTM.

    The published network, and an input gate that starts about the inner rate, in a range as wide as published."""
    rate = inner.inner_rate
    bias = math.log(rate) - math.log1p(-rate)
    parts = data.load(tasks, seed=budget.seed)
    network_key, update_key = jax.random.split(jax.random.key(budget.seed))
    learner = learner_of.MetaLSTM(
        nn.Conv4(*parts.shape, out_size=tasks.way, width=32, norm=published_norm, key=network_key),
        update=learner_of.LearnedUpdate(input_bias=(bias - 0.5, bias + 0.5), key=update_key),
        num_steps=inner.inner_steps,
        norm_policy=norm.norm_policy,
    )
    as_tested = with_test_steps(learner_of.with_num_steps, inner)
    more = {"notes": (inner.in_words,), "as_tested": as_tested}
    return on_episodes(learner_of, learner, ABOUT, parts, tasks, norm, outer, budget, **more)
