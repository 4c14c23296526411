"""What the recipes of MAML and its configurations share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit import evaluate, experiments, losses, metrics, nn
from metakit.experiments import Experiment, Series, Words
from metakit.inner import SGD
from metakit.learners import maml

from ._curves import Lines, Points
from ._images import OneWay, Pictures
from ._loops import EVERY_CORE, Adam, Budget, InnerLoop
from ._networks import curve_network
from ._norms import NO_NORM, Norm


class GRADIENT:
    """The usual options on Glyphs, which are made for minutes."""

    outer = Adam(rate=2e-3, schedule="cosine")
    inner = InnerLoop(inner_rate=1.0, inner_steps=1, test_inner_steps=3)
    budget = Budget(steps=1200, meta_batch=8, validate_every=300, devices=EVERY_CORE)


# Where a published schedule does not fit an hour it is shortened, and docs/results.md says by how much.
ON_OMNIGLOT = {
    "steps": 70_000,
    "rate": 1.5e-3,
    "queries": 1,
    "test_queries": 1,
    "inner_rate": 2.0,
    "validate_every": 7000,
    "test_tasks": 1000,
    "validation_tasks": 300,
}
ON_LINES = {
    "steps": 15_000,
    "meta_batch": 25,
    "rate": 1e-3,
    "schedule": "constant",
    "inner_rate": 0.01,
    "inner_steps": 1,
    "test_inner_steps": 10,
    "validate_every": 1500,
    "validation_tasks": 1000,
    "test_tasks": 4000,
    "devices": 1,
}
ON_OTHER_DATA = {"omniglot": ON_OMNIGLOT, "sinusoid": ON_LINES, "linear": ON_LINES}

# Enough steps for a network that was not meta-trained to fit a handful of examples, at a rate it tolerates.
_LONG = 50
_TOLERATED_ON_IMAGES, _TOLERATED_ON_LINES = 0.1, 0.01


def gradient_based(
    configure: Callable[..., Any],
    about: str,
    data: Pictures | Lines,
    tasks: OneWay | Points,
    norm: Norm | None,
    inner: InnerLoop,
    outer: Adam,
    budget: Budget,
    *,
    learns_rates: bool = False,
    image_norm: Callable[[int], Any] = nn.maml_norm,
    anneal: Callable[[Any, Any], Any] | None = None,
) -> Experiment:
    """MAML, or one of its configurations, whose inner loop takes an update rule, or learns its own rates."""
    key = jax.random.key(budget.seed)
    rule = {"rate": inner.inner_rate} if learns_rates else {"inner": SGD(inner.inner_rate)}
    build = functools.partial(configure, **rule, num_steps=inner.inner_steps)
    if isinstance(data, Lines):
        assert isinstance(tasks, Points)
        train, val, test = (data.sampler(counts) for counts in (tasks.of_training, tasks.of_test, tasks.of_test))
        learner = build(curve_network(1, key), loss=losses.squared_error)
        tolerated, scores, metric = _TOLERATED_ON_LINES, experiments.mean_squared_error(), metrics.mean_squared_error
        more = data.shown(tasks)
        words = Words(f"{about} on {data.data}", data.about, data.task_in_words(tasks), NO_NORM)
    else:
        assert isinstance(tasks, OneWay)
        assert norm is not None
        parts = data.load(tasks, seed=budget.seed)
        train = parts.episodes("train", tasks.of_training)
        val, test = parts.episodes("val", tasks.of_test), parts.episodes("test", tasks.of_test)
        network = image_network(parts.shape, tasks.way, image_norm, key)
        learner = build(network, loss=losses.cross_entropy, norm_policy=norm.norm_policy)
        tolerated, scores, metric = _TOLERATED_ON_IMAGES, experiments.accuracy(), metrics.accuracy
        more = parts.shown
        words = parts.words(about, tasks.in_words, norm.in_words)
    longest = max(inner.in_test, inner.inner_steps)
    return Experiment(
        maml,
        learner,
        outer.optimiser(budget.steps),
        train=train,
        val=val,
        test=test,
        scores=scores,
        anneal=anneal,
        as_tested=with_test_steps(maml.with_num_steps, inner),
        untrained=adapted_at_length(learner, tolerated),
        series=(functools.partial(by_inner_steps, num_steps=longest, metric=metric),),
        words=dataclasses.replace(words, notes=(*words.notes, inner.in_words)),
        **more,
        **budget.of_experiment,
    )


def image_network(shape: tuple[int, int], way: int, norm: Callable[[int], Any], key: jax.Array) -> nn.Conv4:
    """MAML's published network of 28x28 grey images, and its mini-ImageNet one of all others."""
    channels, size = shape
    if shape == (1, 28):
        return nn.conv4_maml_omniglot(way, norm=norm, key=key)
    return nn.Conv4(channels, size, out_size=way, width=32, norm=norm, key=key)


def with_test_steps(with_num_steps: Callable[[Any, int], Any], inner: Any) -> Callable[[Any], Any]:
    """A learner with its number of test steps."""

    def as_tested(learner: Any) -> Any:
        return learner if inner.in_test == inner.inner_steps else with_num_steps(learner, inner.in_test)

    return as_tested


def adapted_at_length(learner: Any, rate: float = _TOLERATED_ON_IMAGES) -> tuple[str, Any]:
    """MAML's untrained network, which needs more than a few steps."""
    tuned = dataclasses.replace(learner, inner=SGD(rate), num_steps=_LONG, step_weights=None)
    return f"not meta-trained, adapted for {_LONG} steps", tuned


def by_inner_steps(
    algorithm: Any, learner: Any, sampler: Any, key: Any, *, num_tasks: int, num_steps: int, metric: Callable[..., Any]
) -> list[Series]:
    """The test score after 0, 1, 2, ... inner steps, on the same tasks in one call."""
    del algorithm
    longer = maml.with_num_steps(learner, num_steps)
    measure = eqx.Partial(_path_scores, longer, metric=metric, num_steps=num_steps)
    scores = evaluate.scores_of(measure, sampler, key, num_tasks=num_tasks)
    return [Series("inner steps", 0, [evaluate.student_t(column) for column in jnp.moveaxis(scores, 1, 0)])]


def _path_scores(learner: Any, task: Any, key: Any, *, metric: Any, num_steps: int) -> Any:
    del key
    steps = maml.path(learner, task.support, num_steps=num_steps)
    outputs = eqx.filter_vmap(maml.predict, in_axes=(0, None))(steps, task.query.x)
    return jax.vmap(metric, in_axes=(0, None))(outputs, task.query.y)
