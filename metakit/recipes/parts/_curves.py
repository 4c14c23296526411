"""Options of curves, and what nothing can beat on them."""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from metakit import metrics, tasks
from metakit._algorithm import MetaLearner
from metakit.experiments import Shown, curves, plots

from ._markers import InTest
from ._option_error import require_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """Points of a curve."""

    OF: ClassVar[tuple[str, ...]] = ("sinusoid", "linear", "gp")
    shot: int = 10
    """Support points in a training task."""
    queries: int = 10
    """Query points in a training task."""
    test_shot: Annotated[int | None, InTest("shot")] = None
    """Support points in a test task; by default as in training."""
    test_queries: Annotated[int | None, InTest("queries")] = None
    """Query points in a test task; by default as in training."""

    def __post_init__(self):
        require_least(dict.fromkeys(vars(self), 1), vars(self))

    @property
    def of_training(self) -> tuple[int, int]:
        """Shot and queries of training."""
        return self.shot, self.queries

    @property
    def of_test(self) -> tuple[int, int]:
        """Shot and queries of the test."""
        shot, queries = self.test_shot, self.test_queries
        return self.shot if shot is None else shot, self.queries if queries is None else queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """Sinusoids, or lines of varying slope and intercept."""

    data: Literal["sinusoid", "linear"] = "sinusoid"

    @property
    def about(self) -> str:
        """The data of a report."""
        sinusoids, lines = "sinusoids, amplitude 0.1 to 5.0", "lines of varying slope and intercept"
        return sinusoids if self.data == "sinusoid" else lines

    def sampler(self, counts: tuple[int, int]) -> Any:
        """A sampler of tasks of `(shot, queries)`."""
        shot, queries = counts
        family = tasks.Sinusoid if self.data == "sinusoid" else tasks.LinearRegression
        return family(shot=shot, queries=queries)

    def shown(self, points: Points) -> dict[str, Any]:
        """Baselines and pictures of an `Experiment`."""
        linear = self.data == "linear"
        oracle = {"oracle: Bayes posterior mean": (_ORACLE, self.sampler(points.of_test))} if linear else {}
        interval = (-1.0, 1.0) if linear else (-5.0, 5.0)
        return {"baselines": oracle, "pictures": (functools.partial(curves, interval=interval),)}

    def task_in_words(self, points: Points) -> str:
        """A test task."""
        return "{} support and {} query points".format(*points.of_test)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """Curves from a Gaussian process, with a distribution for each new target."""

    FEWEST: ClassVar[int] = 3
    data: Literal["gp"] = "gp"

    about: ClassVar[str] = "curves from a Gaussian process, length scale 0.4"

    def sampler(self, counts: tuple[int, int]) -> tasks.GaussianProcessCurves:
        """A sampler of tasks of up to `shot` support points, and so many queries."""
        most, queries = counts
        return tasks.GaussianProcessCurves((min(self.FEWEST, most), most), queries)

    def shown(self, points: Points) -> dict[str, Any]:
        """Baselines and pictures of an `Experiment`."""
        exact = f"oracle: exact posterior, standard deviation at least {_LEAST_SCALE}"
        return {"baselines": {exact: (_EXACT, self.sampler(points.of_test))}, "pictures": (bands,)}

    def task_in_words(self, points: Points) -> str:
        """A test task."""
        shot, queries = points.of_test
        return f"{min(self.FEWEST, shot)} to {shot} support and {queries} query points"


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


def bands(shown: Shown) -> list[tuple[str, str]]:
    """Mean and band on three test tasks, beside the exact posterior."""

    def curve(key: Any) -> dict[str, Any]:
        episode = shown.sampler(key)
        x = jnp.linspace(-2.0, 2.0, 200, dtype=episode.query.x.dtype)[:, None]
        learnt = shown.algorithm.predict(shown.algorithm.adapt(shown.learner, episode.support, key), x, key)
        exact = _exact_predict(_exact_adapt(shown.sampler, episode.support), x)
        found = {"x": x, "mean": learnt.mean, "scale": learnt.scale}
        found |= {"exact_mean": exact.mean, "exact_scale": exact.scale}
        found |= {"query_x": episode.query.x, "query_y": episode.query.y}
        found |= {f"support_{name}": getattr(episode.support, name)[episode.support.mask] for name in ("x", "y")}
        return {name: np.asarray(value)[:, 0] for name, value in found.items()}

    plots.bands([curve(jax.random.fold_in(shown.key, i)) for i in range(3)], shown.folder / "bands.png")
    return [("Mean and band on three test tasks, beside the exact posterior", "bands.png")]
