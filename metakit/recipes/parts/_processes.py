"""What the recipes of neural processes share."""

from typing import Any

import jax

from metakit import experiments
from metakit.experiments import Experiment, Words
from metakit.learners import neural_process

from ._curves import GaussianProcess, Points
from ._loops import Adam, Budget
from ._norms import NO_NORM


class CURVES:
    """The usual options on curves of a Gaussian process."""

    points = Points(shot=9, queries=9)
    outer = Adam(rate=1e-3, schedule="cosine")
    budget = Budget(steps=20_000, meta_batch=64, validate_every=2000, validation_tasks=1000, test_tasks=2000)


def neural_process_on_curves(
    about: str,
    data: GaussianProcess,
    tasks: Points,
    outer: Adam,
    budget: Budget,
    *,
    latent: bool = False,
    attention: str | None = None,
) -> Experiment:
    """A neural process of curves, with the published widths."""
    options: dict[str, Any] = {"latent": latent} | ({} if attention is None else {"attention": attention})
    return Experiment(
        neural_process,
        neural_process.NeuralProcess(1, 1, **options, key=jax.random.key(budget.seed)),
        outer.optimiser(budget.steps),
        train=data.sampler(tasks.of_training),
        val=data.sampler(tasks.of_test),
        test=data.sampler(tasks.of_test),
        scores=experiments.log_density(),
        words=Words(f"{about} on {data.data}", data.about, data.task_in_words(tasks), NO_NORM),
        **data.shown(tasks),
        **budget.of_experiment,
    )
