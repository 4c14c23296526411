"""Pictures of test tasks, for a report."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import tasks

from . import plots
from ._baselines import is_image
from ._experiment import Experiment

Picture = Callable[["Shown"], list[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a picture of test tasks is drawn from.

    A picture is a function of it that writes files into `folder` and returns them as (title, file).

    **Arguments:** `algorithm`; `learner`, as it is tested; `sampler` of test tasks; `key`; `folder`; `ink`, whether
    pictures hold light ink on a dark ground.

    >>> Shown(None, None, None, None, None).ink
    False
    """

    algorithm: Any
    learner: Any
    sampler: Any
    key: Any
    folder: Any
    ink: bool = False

    def predict(self, support: Any, x: Any) -> Any:
        """What the learner says of `x` after learning from `support`."""
        return self.algorithm.predict(self.algorithm.adapt(self.learner, support, self.key), x, self.key)


def fitting_pictures(experiment: Experiment) -> tuple[Picture, ...]:
    """An episode of images as a grid, curves of one number as lines; anything else has no picture."""
    task = eqx.filter_eval_shape(experiment.test, jax.random.key(0))
    x, y, way = (getattr(getattr(task, "query", None), name, None) for name in ("x", "y", "way"))
    if is_image(x) and way is not None:
        return (episode,)
    if getattr(x, "shape", (0,))[1:] == (1,) and getattr(y, "shape", (0,))[1:] == (1,):
        return (curves,)
    return ()


def episode(shown: Shown) -> list[tuple[str, str]]:
    """One test episode of images, each query under the class that was predicted.

    **Arguments:** `shown`, a `Shown`.

    **Returns:** title and file.

    >>> callable(episode)
    True
    """
    task = shown.sampler(shown.key)
    predicted = jnp.argmax(shown.predict(task.support, task.query.x), axis=-1)
    labels = [f"class {label}" for label in range(task.support.way)]
    names = shown.sampler.names(shown.key) if isinstance(shown.sampler, tasks.Episodes) else labels
    plots.episode_grid(task.support, task.query, predicted, names, shown.folder / "episode.png", ink=shown.ink)
    return [("One test episode", "episode.png")]


def curves(shown: Shown, *, interval: tuple[float, float] | None = None) -> list[tuple[str, str]]:
    """Three test tasks of curves, before and after adaptation.

    **Arguments:** `shown`, a `Shown`; `interval`, of the inputs to draw: by default that of the task's.

    **Returns:** title and file.

    >>> callable(curves)
    True
    """

    def curve(task: Any) -> dict[str, Any]:
        inputs = np.concatenate([np.asarray(task.support.x), np.asarray(task.query.x)])
        lowest, highest = (inputs.min(), inputs.max()) if interval is None else interval
        x = jnp.linspace(lowest, highest, 200, dtype=task.support.x.dtype)[:, None]
        found = {
            "x": x[:, 0],
            "after": shown.predict(task.support, x)[:, 0],
            "support_x": task.support.x[:, 0],
            "support_y": task.support.y[:, 0],
            "truth_x": task.query.x[:, 0],
            "truth_y": task.query.y[:, 0],
        }
        if callable(getattr(shown.learner, "model", None)):
            found["before"] = shown.learner.model(x)[:, 0]
        return {name: np.asarray(value) for name, value in found.items()}

    drawn = [curve(shown.sampler(jax.random.fold_in(shown.key, i))) for i in range(3)]
    plots.regression_curves(drawn, pathlib.Path(shown.folder) / "curves.png")
    return [("Three test tasks, before and after adaptation", "curves.png")]
