"""A run that can be used: its learner, its numbers, and what it was asked."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import train
from metakit._hyperparameter import trainable
from metakit._tree import is_key

from ._experiment import DataRecord, Experiment
from ._folder import RunFolder, RunFolderError, read, read_arrays, write_arrays
from ._record import arrays_in_words, data_from_record

Which = Literal["tested", "best", "last"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and its learner; from `mk.experiments.run` or `mk.open_run`.

    **Arguments:**

    - `folder`: its path.
    - `algorithm`, `learner`: `run.algorithm.adapt(run.learner, support)` learns a new task. The learner of a finished
      run is the one that was tested; before that, the best or the last one of its checkpoints.
    - `experiment`: what was run. One that was opened from a folder has no tasks to draw.
    - `recipe`, `options`: the recipe's name, `None` where there was none, and its options.
    - `versions`: of the packages that it was made with.
    - `finished`: whether it was tested.

    >>> Run(pathlib.Path("runs/mine"), None, None, None, "maml", {}, {}, False).recipe
    'maml'
    """

    folder: pathlib.Path
    algorithm: Any
    learner: Any
    experiment: Experiment | Any
    recipe: str | None
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    finished: bool

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The log as arrays: `step`, `loss` and `gradient_norm`, one for each dispatch; `validation_step`,
        `validation`, `validation_low` and `validation_high`, one for each validation."""
        records = RunFolder(self.folder).records()
        progress = [r for r in records if r["event"] == "progress"]
        validated = [r for r in records if r["event"] == "validated"]
        found = {name: np.array([r[name] for r in progress]) for name in ("step", "loss", "gradient_norm")}
        names = {"validation_step": "step", "validation": "mean", "validation_low": "low", "validation_high": "high"}
        return found | {name: np.array([r[key] for r in validated]) for name, key in names.items()}

    @property
    def test(self) -> dict[str, Any]:
        """The test table: for each row its mean and interval; `{}` before the test."""
        file = RunFolder(self.folder).test
        return read(file) if file.exists() else {}

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """The score of every test task, by row; `{}` before the test."""
        file = RunFolder(self.folder).scores
        return read_arrays(file) if file.exists() else {}

    @property
    def data(self) -> DataRecord | None:
        """The classes that it trained, validated and tested on; `None` where its tasks have none."""
        return read_data(RunFolder(self.folder))


def read_data(folder: RunFolder) -> DataRecord | None:
    """The classes that a run has recorded.

    **Arguments:** `folder`, a `RunFolder`.

    **Returns:** a `DataRecord`; `None` where its tasks have no classes.

    >>> read_data(RunFolder("no/such/folder")) is None
    True
    """
    return data_from_record(read(folder.classes)) if folder.classes.exists() else None


def read_run(experiment: Experiment | Any, folder: RunFolder, *, which: Which = "tested") -> Run:
    """The run of an experiment in its folder; `mk.open_run` builds the experiment too.

    **Arguments:** `experiment`; `folder`, a `RunFolder`; `which` learner, as in `mk.open_run`.

    **Returns:** a `Run`.

    **Raises:** `RunFolderError` for a folder that is no run, or holds another network or no checkpoint yet.

    >>> read_run(None, RunFolder("no/such/folder"))
    Traceback (most recent call last):
    ...
    metakit.experiments...RunFolderError: no/such/folder is no run folder: it does not exist...
    """
    record = folder.read_record()
    return Run(
        folder.path,
        experiment.algorithm,
        _learner(experiment, folder, which),
        experiment,
        record["recipe"],
        record["options"],
        record["versions"],
        folder.finished,
    )


def _learner(experiment: Experiment, folder: RunFolder, which: Which) -> Any:
    if which == "tested" and folder.learner.exists():
        like = eqx.filter_eval_shape(experiment.as_tested, experiment.learner)
        return load_arrays(folder.learner, like)
    return trained_learner(experiment, folder, experiment.tested if which == "tested" else which)


def initial_state(experiment: Experiment) -> train.TrainState:
    """Training at step 0."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), 1)
    return train.init(experiment.learner, experiment.optimiser, key=key, trainable=trainable)


def trained_learner(experiment: Experiment | Any, folder: RunFolder, which: Literal["best", "last"]) -> Any:
    """The learner of the newest checkpoint.

    **Arguments:** `experiment`, which gives its structure; `folder`, a `RunFolder`; `which`: the `"best"` by validation
    so far, or the `"last"`.

    **Returns:** a learner, as it is trained.

    **Raises:** `RunFolderError` where there is no checkpoint yet; `mk.train.CheckpointError` for another network.

    >>> trained_learner(None, RunFolder("no/such/folder"), "best")
    Traceback (most recent call last):
    ...
    metakit.experiments...RunFolderError: no/such/folder holds no checkpoint yet...
    """
    none_yet = RunFolderError(f"{folder.path} holds no checkpoint yet. Continue it with --resume {folder.path}.")
    if not folder.checkpoints.exists():
        raise none_yet
    template = initial_state(experiment)
    with train.Checkpoints(folder.checkpoints) as checkpoints:
        if checkpoints.latest_step is None:
            raise none_yet
        best = checkpoints.restore_best(template.learner) if which == "best" else None
        return checkpoints.restore(template).learner if best is None else best.learner


def save_arrays(path: pathlib.Path, learner: Any) -> None:
    """The arrays of a learner in flattening order; what is not an array comes from the experiment."""
    arrays = [leaf for leaf in jax.tree.leaves(learner) if eqx.is_array(leaf)]
    raw = [np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf) for leaf in arrays]
    words = np.array(json.dumps(arrays_in_words(learner)))
    write_arrays(path, {"words": words, **{f"{i:05d}": array for i, array in enumerate(raw)}})


def load_arrays(path: pathlib.Path, like: Any) -> Any:
    """A learner of the structure of `like` with the arrays of a file.

    **Raises:** `RunFolderError` for a file that is damaged, or of another learner."""
    file = read_arrays(path)
    words = json.loads(str(file["words"]))
    arrays = [file[f"{i:05d}"] for i in range(len(words))]
    check_fit(words, arrays_in_words(like), str(path))
    leaves, structure = jax.tree.flatten(like)
    remaining = iter(arrays)
    for i, leaf in enumerate(leaves):
        if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
            leaves[i] = _as(next(remaining), leaf)
    return jax.tree.unflatten(structure, leaves)


def _as(array: np.ndarray, leaf: Any) -> Any:
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array))
    # NumPy keeps the bytes of a dtype that it does not know, such as bfloat16, but not its name.
    return jnp.asarray(array.view(leaf.dtype) if array.dtype.kind == "V" else array)


def check_fit(theirs: list[str], ours: list[str], whose: str) -> None:
    """Refuse numbers of another network.

    **Arguments:** `theirs` and `ours`, from `arrays_in_words`; `whose` theirs are, for the error.

    **Raises:** `RunFolderError` naming the first array in which they differ.

    >>> check_fit(["w float32[2]"], ["w float32[2]"], "runs/mine")
    """
    for i in range(max(len(theirs), len(ours))):
        there, here = (words[i] if i < len(words) else "nothing" for words in (theirs, ours))
        if there != here:
            raise RunFolderError(
                f"{whose} holds another network: it has {there} where this one has {here}. Use the options, and for a "
                "recipe of your own the code, that it was made with."
            )
