"""What a trained run says of new examples: classes it has never seen, or a new curve, from a few examples."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import tasks
from metakit._episode import Examples

from . import plots
from ._folder import replacing, room_for
from ._loaded import Run

# Queries that are asked at once; a learner whose batch norm reads the queries sees so many together.
_AT_ONCE = 256


class PredictError(ValueError):
    """Examples that a run cannot learn from, or be asked about.

    **Arguments:** a message that names the file or folder, and says what to try.
    """


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a learner says of the queries.

    **Arguments:**

    - `queries`: a name for each query, such as its file.
    - `outputs`: `[n, way]` probabilities of classes, or `[n, 1]` values.
    - `classes`: their names; empty for values.
    - `scale`: `[n, 1]` standard deviations, of a learner that predicts distributions; `None` otherwise.

    >>> Predictions(("a.png",), np.array([[0.2, 0.8]]), ("cat", "dog")).labels
    ('dog',)
    """

    queries: tuple[str, ...]
    outputs: np.ndarray
    classes: tuple[str, ...] = ()
    scale: np.ndarray | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The predicted class of each query."""
        return tuple(self.classes[i] for i in np.argmax(self.outputs, axis=1)) if self.classes else ()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `file, class, a probability for each class`, or `x, y` and the standard deviation, as CSV."""
        place = pathlib.Path(path)
        with room_for(place), replacing(place) as partial, partial.open("w", newline="") as file:
            rows = csv.writer(file)
            if self.classes:
                rows.writerow(["file", "class", *self.classes])
                for query, label, row in zip(self.queries, self.labels, self.outputs, strict=True):
                    rows.writerow([query, label, *(f"{p:.6f}" for p in row)])
            else:
                spread = [] if self.scale is None else [self.scale[:, 0]]
                rows.writerow(["x", "y", *(["standard deviation"] if spread else [])])
                rows.writerows(zip(self.queries, self.outputs[:, 0], *spread, strict=True))


def read_support(run: Run, folder: str | os.PathLike[str]) -> tuple[Examples, tuple[str, ...]]:
    """A support set of images, one folder a class, as the run's own pictures were read.

    **Arguments:** `run`; `folder`, which holds a folder of images for each of at least two classes.

    **Returns:** `Examples` and the names of the classes, by label.

    **Raises:** `PredictError` for one class only or one named twice, and for a run of no images; `ValueError` for a
    class without an image; `FileNotFoundError`; `mk.tasks.DecodeError` for a broken image.

    >>> read_support(Run(pathlib.Path("no/run"), None, None, None, None, {}, {}, True), "pictures")
    Traceback (most recent call last):
    ...
    metakit.experiments...PredictError: ...
    """
    pool = tasks.image_folder(folder, **_as_read(run))
    by_word: dict[str, str] = {}
    for name in pool.names:
        word = " ".join(name.split()).casefold()
        if word in by_word:
            raise PredictError(
                f"{folder} names a class twice, {by_word[word]!r} and {name!r}. Put their images into one folder."
            )
        by_word[word] = name
    if len(pool.names) < 2:
        only = next(iter(pool.names))
        raise PredictError(f"{folder} holds one class, {only!r}: of one class every answer is right. Add one.")
    counts = np.asarray(pool.counts)
    x = np.concatenate([np.asarray(pool.images[i, :count]) for i, count in enumerate(counts)])
    y = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Examples(jnp.asarray(x, jnp.float32) / 255, jnp.asarray(y), len(counts)), pool.names


def read_queries(run: Run, places: Sequence[str | os.PathLike[str]]) -> tuple[jax.Array, tuple[str, ...]]:
    """Images to be labelled: files, or folders whose images are taken, those in folders below too.

    **Arguments:** `run`; `places`, files and folders.

    **Returns:** images `[n, channels, height, width]` in 0..1, and their files.

    **Raises:** `PredictError` where there is no image; as `read_support` otherwise.

    >>> read_queries(Run(pathlib.Path("no/run"), None, None, None, None, {}, {}, True), ["pictures"])
    Traceback (most recent call last):
    ...
    metakit.experiments...PredictError: ...
    """
    options, files = _as_read(run), []
    for place in map(pathlib.Path, places):
        if not place.exists():
            raise FileNotFoundError(f"--query {place} does not exist.")
        found = sorted(p for p in place.rglob("*") if tasks.is_image_file(p)) if place.is_dir() else [place]
        if not found:
            raise PredictError(f"--query {place} holds no image. Name a folder of images, or the files themselves.")
        files += found
    images = np.stack([tasks.read_image(file, **options) for file in files])
    return jnp.asarray(images, jnp.float32) / 255, tuple(map(str, files))


def _as_read(run: Run) -> dict[str, Any]:
    data = run.data
    if data is None:
        raise PredictError(
            f"{run.folder} was not trained on images. For curves give --support and --query as CSV files with x and y."
        )
    channels, height, width = data.shape
    return {"size": (height, width), "channels": channels, "invert": data.ink}


def read_curve(path: str | os.PathLike[str], *, with_targets: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Points of a curve from a CSV file with the columns `x` and, for a support set, `y`.

    **Arguments:** `path`; `with_targets`, whether `y` must be there.

    **Returns:** `x` and `y`, `[n, 1]` each; `None` for a `y` that is not asked for.

    **Raises:** `PredictError` for a column that is missing, a cell that is no number, or no rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "s.csv"
    ...     _ = file.write_text("x,y\\n0.0,1.0\\n1.0,3.0\\n")
    ...     read_curve(file, with_targets=True)[1].tolist()
    [[1.0], [3.0]]
    """
    wanted = ["x", "y"] if with_targets else ["x"]
    with pathlib.Path(path).open(newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in wanted if name not in (rows.fieldnames or [])]
        if missing:
            raise PredictError(
                f"{path} has no column {missing[0]!r}; its first line is {','.join(rows.fieldnames or []) or 'empty'}. "
                f"It must be {','.join(wanted)}."
            )
        numbers = []
        for line, row in enumerate(rows, start=2):
            try:
                numbers.append([float(row[name]) for name in wanted])
            except (TypeError, ValueError) as error:
                raise PredictError(f"{path}, line {line}: {dict(row)} holds no number for each of {wanted}.") from error
    if not numbers:
        raise PredictError(f"{path} holds no row below its first line.")
    columns = np.array(numbers, np.float32)
    return columns[:, :1], columns[:, 1:] if with_targets else None


def predict(
    run: Run, support: Examples, x: Any, *, names: Sequence[str] = (), queries: Sequence[str] = ()
) -> Predictions:
    """Learn from a support set, and predict for new inputs.

    **Arguments:**

    - `run`: whose learner to use.
    - `support`: `Examples` of the new task.
    - `x`: inputs `[n, *in]` to be asked about.
    - `names`: of the classes, by label; by default their numbers.
    - `queries`: a name for each of `x`; by default their numbers.

    **Returns:** `Predictions`.

    **Raises:** `PredictError` where the learner cannot take the support set, or has outputs for another number of
    classes.

    >>> import metakit as mk
    >>> nearest = mk.evaluate.baselines.nearest_neighbour
    >>> run = Run(pathlib.Path("runs/none"), nearest, None, None, None, {}, {}, True)
    >>> support = Examples(jnp.array([[0.0], [3.0]]), jnp.array([0, 1]), 2)
    >>> predict(run, support, [[1.0]], names=("low", "high")).labels
    ('low',)
    """
    key = jax.random.key(0)

    def ask(learner: Any, support: Examples, x: Any) -> Any:
        return run.algorithm.predict(run.algorithm.adapt(learner, support, key), x, key)

    x, way = jnp.asarray(x), support.way
    head = fixed_way(run)
    if way is not None and head is not None:
        _check_way(run, way, head)
    try:
        shape = eqx.filter_eval_shape(ask, run.learner, support, x[:1])
    except (ValueError, TypeError) as error:
        raise PredictError(f"the learner of {run.folder} cannot take these examples: {error}") from error
    if way is not None:
        _check_way(run, way, shape.shape[-1])
    ask = eqx.filter_jit(ask)
    outputs = [ask(run.learner, support, x[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE)]
    asked = tuple(queries) or tuple(map(str, range(len(x))))
    if way is not None:
        probabilities = np.concatenate([np.asarray(jax.nn.softmax(part, axis=-1)) for part in outputs])
        return Predictions(asked, probabilities, tuple(names) or tuple(map(str, range(way))))
    means = np.concatenate(
        [np.asarray(getattr(part, "mean", part) if hasattr(part, "scale") else part) for part in outputs]
    )
    scale = np.concatenate([np.asarray(part.scale) for part in outputs]) if hasattr(shape, "scale") else None
    return Predictions(asked, means, (), scale)


def fixed_way(run: Run) -> int | None:
    """The way of a recipe whose network has an output for each class; `None` where any will do, or none is known."""
    return run.options.get("way") if "test_way" not in run.options else None


def _check_way(run: Run, way: int, outputs: int) -> None:
    if way != outputs:
        raise PredictError(
            f"the support set has {way} classes, and the network of {run.folder} an output for each of {outputs}. Give "
            f"exactly {outputs} classes, or use a run of a learner that takes any number, such as prototypical."
        )


def draw_predictions(run: Run, support: Examples, x: Any, predictions: Predictions, path: pathlib.Path) -> None:
    """A picture of the support set and of the first queries under what was predicted of them.

    **Arguments:** `run`; `support`; `x`, the queries; `predictions`, from `predict`; `path` of a PNG.

    >>> callable(draw_predictions)
    True
    """
    if predictions.classes:
        data = run.data
        ink = data is not None and data.ink
        plots.predictions_grid(support, x, predictions.outputs, predictions.classes, path, ink=ink)
    else:
        plots.predicted_curve(support, np.asarray(x), predictions.outputs, predictions.scale, path)
