"""What a task is on the command line: how one is drawn, scored, told in words and shown."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import evaluate, metrics, tasks
from metakit._algorithm import MetaLearner
from metakit._hyperparameter import Hyperparameter
from metakit.evaluate import Interval
from metakit.learners import mann

from . import _pictures
from ._config import Settings

Sampler = Callable[..., Any]


def percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.2f} ± {50 * (interval.high - interval.low):.2f} %"


def plain(interval: Interval) -> str:
    return f"{interval.mean:.4f} ± {(interval.high - interval.low) / 2:.4f}"


@dataclasses.dataclass(frozen=True)
class Series:
    """A test score against a count, such as inner steps, which begins at `first`."""

    name: str
    first: int
    intervals: list[Interval]


class AbstractForm(abc.ABC):
    """One form of task. A new one is a class here, and is named by the algorithms or the data that have it."""

    # The score by its key in `scores`, in full, whether it is a share of 1, and which learner is the best.
    score: ClassVar[str]
    score_in_words: ClassVar[str]
    is_share: ClassVar[bool]
    best: ClassVar[Literal["highest", "lowest"]]
    # Of outputs and targets, where that is all that a score needs.
    metric: ClassVar[Callable[..., Any] | None] = None
    # Side of Omniglot's images in pixels.
    omniglot_size: ClassVar[int] = 28

    @abc.abstractmethod
    def sampler(self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool) -> Sampler:
        """Draws tasks of a run, those to train on or those for validation and test."""

    @abc.abstractmethod
    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        """The score of each task under its key, and whatever else is reported: arrays `[num_tasks, ...]`."""

    @abc.abstractmethod
    def in_words(self, settings: Settings) -> str:
        """A test task."""

    def baselines(self, settings: Settings, test: Sampler) -> dict[str, tuple[Any, Any]]:
        """What any learner must beat, or cannot: (algorithm, learner) by name."""
        del settings, test
        return {}

    def series(self, scores: dict[str, Any]) -> list[Series]:
        """Scores that count something within a task."""
        del scores
        return []

    @abc.abstractmethod
    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        """Draw test tasks into the folder, as (title, file)."""

    def show(self, interval: Interval) -> str:
        return percent(interval) if self.is_share else plain(interval)


class ImageEpisodes(AbstractForm):
    """Classification of images: a support and a query set of a few classes."""

    score, score_in_words, is_share, best = "accuracy", "accuracy", True, "highest"
    metric = staticmethod(metrics.accuracy)

    def __init__(self, *, in_random_order: bool = False):
        # For learners that read the support set as a sequence, which sorted by label would give the labels away.
        self.in_random_order = in_random_order

    def sampler(self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool) -> Sampler:
        assert pool is not None
        counts = (settings.way, settings.shot, settings.queries)
        if not training:
            counts = (settings.test_way, settings.test_shot, settings.test_queries)
        return tasks.Episodes(pool, *counts, shuffle=self.in_random_order)

    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        wanted = {"accuracy": metrics.accuracy, "nll": metrics.negative_log_likelihood}
        return evaluate.scores(algorithm, learner, sampler, key, num_tasks=num_tasks, metrics=wanted)

    def in_words(self, settings: Settings) -> str:
        return f"{settings.test_way}-way {settings.test_shot}-shot, {settings.test_queries} queries a class"

    def baselines(self, settings: Settings, test: Sampler) -> dict[str, tuple[Any, Any]]:
        del settings, test
        return {"nearest neighbour on pixels": (evaluate.baselines.nearest_neighbour, Hyperparameter(0.0))}

    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        del settings
        episode = test(key)
        outputs = algorithm.predict(algorithm.adapt(learner, episode.support, key), episode.query.x, key)
        predicted = jnp.argmax(outputs, axis=-1)
        _pictures.episode_grid(episode.support, episode.query, predicted, folder / "episode.png")
        return [("One test episode", "episode.png")]


class ImageSequences(AbstractForm):
    """Images of a few classes in one random order; each is to be told from those before it."""

    score, score_in_words, is_share, best = "accuracy", "accuracy over the whole sequence", True, "highest"
    omniglot_size = 20  # as published, for networks without convolutions

    def sampler(self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool) -> Sampler:
        assert pool is not None
        counts = (settings.way, settings.shot) if training else (settings.test_way, settings.test_shot)
        # As published for Omniglot, in training only; glyphs come distorted.
        moved = tasks.TurnAndShift() if training and settings.data == "omniglot" else None
        return tasks.Sequences(pool, *counts, augment_class=moved)

    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        del algorithm
        diagnose = eqx.Partial(mann.diagnostics, learner)
        found = evaluate.scores_of(diagnose, sampler, key, num_tasks=num_tasks, chunk=min(num_tasks, 32))
        return {"accuracy": jnp.mean(found.correct, axis=1), "presentation": found.accuracy}

    def in_words(self, settings: Settings) -> str:
        length = settings.test_way * settings.test_shot
        return f"sequences of {length} images, {settings.test_shot} of each of {settings.test_way} classes"

    def series(self, scores: dict[str, Any]) -> list[Series]:
        by_presentation = jnp.moveaxis(scores["presentation"], 1, 0)
        return [Series("presentation", 1, [evaluate.student_t(column) for column in by_presentation])]

    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        del settings, algorithm, learner, test, key, folder
        return []


class Curves(AbstractForm):
    """Regression of sinusoids or lines."""

    score, score_in_words, is_share, best = "error", "mean squared error", False, "lowest"
    metric = staticmethod(metrics.mean_squared_error)

    def sampler(self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool) -> Sampler:
        assert pool is None
        family = tasks.Sinusoid if settings.data == "sinusoid" else tasks.LinearRegression
        if training:
            return family(shot=settings.shot, queries=settings.queries)
        return family(shot=settings.test_shot, queries=settings.test_queries)

    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        wanted = {"error": metrics.mean_squared_error}
        return evaluate.scores(algorithm, learner, sampler, key, num_tasks=num_tasks, metrics=wanted)

    def in_words(self, settings: Settings) -> str:
        return f"{settings.test_shot} support and {settings.test_queries} query points"

    def baselines(self, settings: Settings, test: Sampler) -> dict[str, tuple[Any, Any]]:
        return {"oracle: Bayes posterior mean": (_ORACLE, test)} if settings.data == "linear" else {}

    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        lowest, highest = (-5.0, 5.0) if settings.data == "sinusoid" else (-1.0, 1.0)

        def curve(episode: Any) -> dict[str, Any]:
            x = jnp.linspace(lowest, highest, 200, dtype=episode.support.x.dtype)[:, None]
            found = {
                "x": x[:, 0],
                "after": algorithm.predict(algorithm.adapt(learner, episode.support, key), x, key)[:, 0],
                "support_x": episode.support.x[:, 0],
                "support_y": episode.support.y[:, 0],
                "truth_x": episode.query.x[:, 0],
                "truth_y": episode.query.y[:, 0],
            }
            if hasattr(learner, "model"):
                found["before"] = learner.model(x)[:, 0]
            return {name: np.asarray(value) for name, value in found.items()}

        curves = [curve(test(jax.random.fold_in(key, i))) for i in range(3)]
        _pictures.regression_curves(curves, folder / "curves.png")
        return [("Three test tasks, before and after adaptation", "curves.png")]


def _oracle_adapt(lines: Any, support: Any, key: Any = None) -> Any:
    del key
    return tasks.linear_posterior(lines, support).mean


def _oracle_predict(mean: Any, x: Any, key: Any = None) -> Any:
    del key
    return (mean[0] * x[:, 0] + mean[1])[:, None]


def _oracle_loss(lines: Any, task: Any, key: Any = None) -> Any:
    del key
    return metrics.mean_squared_error(_oracle_predict(_oracle_adapt(lines, task.support), task.query.x), task.query.y)


_ORACLE = MetaLearner(_oracle_adapt, _oracle_predict, _oracle_loss)


class GaussianCurves(AbstractForm):
    """Regression of curves from a Gaussian process, with a distribution for each new target."""

    score, score_in_words, is_share, best = "log_density", "log-density per new point (nats)", False, "highest"
    _FEWEST = 3

    def sampler(
        self, settings: Settings, pool: tasks.ImagePool | None, *, training: bool
    ) -> tasks.GaussianProcessCurves:
        assert pool is None
        most, queries = (settings.shot, settings.queries) if training else (settings.test_shot, settings.test_queries)
        return tasks.GaussianProcessCurves((min(self._FEWEST, most), most), queries)

    def scores(self, algorithm: Any, learner: Any, sampler: Sampler, key: Any, *, num_tasks: int) -> dict[str, Any]:
        wanted = {"log_density": metrics.log_density}
        return evaluate.scores(algorithm, learner, sampler, key, num_tasks=num_tasks, metrics=wanted)

    def in_words(self, settings: Settings) -> str:
        fewest = min(self._FEWEST, settings.test_shot)
        return f"{fewest} to {settings.test_shot} support and {settings.test_queries} query points"

    def baselines(self, settings: Settings, test: Sampler) -> dict[str, tuple[Any, Any]]:
        del settings
        return {f"oracle: exact posterior, standard deviation at least {_LEAST_SCALE}": (_EXACT, test)}

    def pictures(
        self, settings: Settings, algorithm: Any, learner: Any, test: Sampler, key: Any, folder: pathlib.Path
    ) -> list[tuple[str, str]]:
        del settings

        def curve(key: Any) -> dict[str, Any]:
            episode = test(key)
            x = jnp.linspace(-2.0, 2.0, 200, dtype=episode.query.x.dtype)[:, None]
            learnt = algorithm.predict(algorithm.adapt(learner, episode.support, key), x, key)
            exact = _exact_predict(_exact_adapt(test, episode.support), x)
            found = {"x": x, "mean": learnt.mean, "scale": learnt.scale}
            found |= {"exact_mean": exact.mean, "exact_scale": exact.scale}
            found |= {"query_x": episode.query.x, "query_y": episode.query.y}
            found |= {f"support_{name}": getattr(episode.support, name)[episode.support.mask] for name in ("x", "y")}
            return {name: np.asarray(value)[:, 0] for name, value in found.items()}

        _pictures.bands([curve(jax.random.fold_in(key, i)) for i in range(3)], folder / "bands.png")
        return [("Mean and band on three test tasks, beside the exact posterior", "bands.png")]


# What the published neural processes cannot fall below, so neither may what they are compared with.
_LEAST_SCALE = 0.1


def _exact_adapt(curves: Any, support: Any, key: Any = None) -> Any:
    del key
    # All curves are of one process, so the key is any.
    return tasks.gp_kernel(curves, jax.random.key(0)), support


def _exact_predict(adapted: Any, x: Any, key: Any = None) -> Any:
    del key
    kernel, support = adapted
    return tasks.gp_posterior(kernel, support, x, min_scale=_LEAST_SCALE)


def _exact_loss(curves: Any, task: Any, key: Any = None) -> Any:
    del key
    return -metrics.log_density(_exact_predict(_exact_adapt(curves, task.support), task.query.x), task.query.y)


_EXACT = MetaLearner(_exact_adapt, _exact_predict, _exact_loss)

EPISODES = ImageEpisodes()
ORDERED_EPISODES = ImageEpisodes(in_random_order=True)
SEQUENCES = ImageSequences()
CURVES = Curves()
GAUSSIAN_CURVES = GaussianCurves()
