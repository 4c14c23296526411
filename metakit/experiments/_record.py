"""What a run remembers of its experiment, as JSON values."""

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from metakit import random
from metakit._tree import is_key
from metakit.evaluate import Interval

from ._assess import Assessment
from ._experiment import DataRecord, Experiment
from ._folder import FORMAT
from ._scores import Series

PACKAGES = ("metakit", "jax", "equinox", "optax")


def versions() -> dict[str, str]:
    """Of what decides a number's last bits."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def identity(experiment: Experiment) -> dict[str, Any]:
    """What must be the same for a run to be continued: the recipe and its options, or all that can be said in words."""
    if experiment.origin is not None:
        return {"recipe": experiment.origin.name, "options": dict(experiment.origin.options)}
    counts = ("steps", "meta_batch", "validate_every", "validation_tasks", "test_tasks", "seed", "tested")
    algorithm = experiment.algorithm
    return {
        "recipe": None,
        "options": {name: getattr(experiment, name) for name in counts}
        | {
            "algorithm": getattr(algorithm, "__name__", type(algorithm).__name__),
            "scores": experiment.scores.name,
            "learner": arrays_in_words(experiment.learner),
        },
    }


def as_record(experiment: Experiment) -> dict[str, Any]:
    """`run.json`."""
    scores = experiment.scores
    return {
        "format": FORMAT,
        **identity(experiment),
        "digest": None if experiment.origin is None else experiment.origin.digest,
        "command": None if experiment.origin is None else experiment.origin.command,
        "start_from": experiment.start_from,
        "words": dataclasses.asdict(experiment.words),
        "score": {n: getattr(scores, n) for n in ("name", "in_words", "best", "is_share")},
        "devices": experiment.devices,
        "versions": versions(),
    }


def data_as_record(data: DataRecord) -> dict[str, Any]:
    """`data.json`."""
    return dataclasses.asdict(data)


def data_from_record(record: Mapping[str, Any]) -> DataRecord:
    """The same, read back."""
    classes = {part: tuple(names) for part, names in record["classes"].items()}
    tuples = {"classes": classes, "shape": tuple(record["shape"]), "seen": tuple(record["seen"])}
    return DataRecord(**{**record, **tuples})


def arrays_in_words(tree: Any) -> list[str]:
    """Path, dtype and shape of every array of a learner.

    **Arguments:** `tree`, of arrays or of what `eqx.filter_eval_shape` makes of them.

    **Returns:** one line for each, in flattening order.

    >>> arrays_in_words({"w": jax.numpy.ones((2, 3), "float32")})
    ["['w'] float32[2, 3]"]
    """
    return [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
        if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
    ]


def tasks_fingerprint(experiment: Experiment, key: jax.Array) -> str:
    """The sha256 of the first two test tasks: two runs with one fingerprint were tested on the same tasks."""
    digest = hashlib.sha256()
    draw = eqx.filter_jit(lambda sampler, task_key: sampler(jax.random.split(task_key)[0]))
    for task_key in random.task_keys(key, 0, 2):
        for path, leaf in jax.tree.leaves_with_path(draw(experiment.test, task_key)):
            if not eqx.is_array(leaf):
                continue
            raw = jax.random.key_data(leaf) if is_key(leaf) else leaf
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}".encode())
            digest.update(np.ascontiguousarray(raw).tobytes())
    return digest.hexdigest()


def ends(interval: Interval | None) -> dict[str, float] | None:
    """An interval as JSON values."""
    if interval is None:
        return None
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "std": interval.std}


def assessment_as_record(assessment: Assessment) -> dict[str, Any]:
    """The numbers of a test."""
    return {
        "scores": {row.name: ends(row.score) for row in assessment.rows},
        "advantages": {row.name: ends(row.advantage) for row in assessment.rows if row.advantage is not None},
        "nll": None if assessment.nll is None else assessment.nll.mean,
        "calibration_error": assessment.calibration_error,
        "alone": ends(assessment.alone),
        "series": {series.name: series_as_record(series) for series in assessment.series},
    }


def series_as_record(series: Series) -> dict[str, Any]:
    """A score against a count."""
    return {"first": series.first, "scores": [ends(interval) for interval in series.intervals]}
