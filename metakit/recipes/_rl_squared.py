"""RL^2."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import evaluate, nn, tasks, train
from metakit._environment import Discrete
from metakit.experiments import AbstractScores, Experiment, Series, Words
from metakit.learners import rl_squared as learner_of

from .parts import NO_NORM, Adam, Budget, recipe

ABOUT = "RL^2 with a GRU and PPO (Duan et al. 2016)"
PULLS, ARMS = 10, 5
# How often PPO goes over what it collected; each time is a step of the optimiser.
EPOCHS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bandits:
    """Pulls of arms that pay with unknown probabilities; each pull is an episode."""

    data: Literal["bandits"] = "bandits"


@dataclasses.dataclass(frozen=True)
class Rewards(AbstractScores):
    """The total reward, and that of each pull."""

    name = "reward"
    in_words = "total reward"
    best = "highest"
    is_share = False

    def of(self, algorithm: Any, learner: Any, sampler: Any, key: Any, *, num_tasks: int) -> dict[str, Any]:
        del algorithm
        diagnose = eqx.Partial(learner_of.diagnostics, learner)
        by_pull = evaluate.scores_of(diagnose, sampler, key, num_tasks=num_tasks).returns
        return {"reward": jnp.sum(by_pull, axis=1), "pull": by_pull}

    def series(self, scores: dict[str, Any]) -> list[Series]:
        return [Series("pull", 1, [evaluate.student_t(column) for column in jnp.moveaxis(scores["pull"], 1, 0)])]


@recipe(ABOUT)
def rl_squared(
    data: Bandits = Bandits(),
    outer: Adam = Adam(rate=1e-2, schedule="cosine", clip_norm=1.0),
    budget: Budget = Budget(steps=1000, meta_batch=256, validate_every=250, validation_tasks=2000, test_tasks=20_000),
) -> Experiment:
    """RL^2: a GRU of 64 that learns to explore, by PPO; a pull is an episode, and all pulls count alike."""
    network_key, head_key = jax.random.split(jax.random.key(budget.seed))
    arms = Discrete(ARMS)
    network = nn.GRU(learner_of.token_size((1,), arms), 64, key=network_key)
    policy = learner_of.RecurrentPolicy(network, (1,), arms, key=head_key)
    optimum = tasks.bandit_optimal_value(PULLS, ARMS)
    words = f"{PULLS} pulls of {ARMS} arms (of {optimum:.4f} that any learner can earn, at random {PULLS / 2:g})"
    about = "Bernoulli bandits, each arm's probability uniform in 0..1"
    return Experiment(
        learner_of,
        learner_of.RLSquared(policy, num_episodes=PULLS, discount=1.0),
        outer.optimiser(EPOCHS * budget.steps),  # its schedule counts the epochs of PPO
        train=tasks.Bandits(ARMS),
        val=tasks.Bandits(ARMS),
        test=tasks.Bandits(ARMS),
        scores=Rewards(),
        rule=train.Epochs(EPOCHS),
        baselines={},
        pictures=(),
        words=Words(f"{ABOUT} on {data.data}", about, words, NO_NORM),
        **budget.of_experiment,
    )
