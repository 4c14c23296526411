"""Runs opened from their folders."""

import dataclasses
import os
from typing import Any, Literal

from metakit.experiments import DataRecord, Experiment, Run, RunFolder, RunFolderError, read_data, read_run

from ._find import find
from ._recall import Recall
from ._recipe import Recipe, RecipeError


def open_run(
    folder: str | os.PathLike[str],
    which: Literal["tested", "best", "last"] = "tested",
    *,
    experiment: Experiment | None = None,
    changed_recipe: bool = False,
) -> Run:
    """A run from its folder: algorithm and learner, without the data that it was trained on.

    The recipe is called again with the recorded options and shapes, and the recorded numbers are put into its learner.
    No code is read from the folder.

    **Arguments:**

    - `folder`: made by `mk.experiments.run` or `metakit train`.
    - `which`: the learner that was `"tested"` (the default), or the `"best"` or `"last"` of the checkpoints, as it is
      trained. Of a run that is not finished, the learner that would be tested now.
    - `experiment`: of a run that no recipe made: the experiment, built again. Default none.
    - `changed_recipe`: open a run whose recipe, of a user's, has changed since; default `False`.

    **Returns:** a `Run`, whose experiment has no tasks to draw.

    **Raises:** `RunFolderError` for a folder that is no run, is damaged, or is of another version; where the recipe has
    changed; and where none made it and no experiment is given. `RecipeError` where the recipe is gone.

    >>> open_run("no/such/folder")
    Traceback (most recent call last):
    ...
    metakit.experiments...RunFolderError: no/such/folder is no run folder: it does not exist...
    """
    place = RunFolder(folder)
    record = place.read_record()
    if experiment is None:
        found = recipe_of(place, record, changed_recipe=changed_recipe)
        data = read_data(place)
        experiment = found.build(record["options"], recall=None if data is None else Recall(data, blank=True))
    absent: dict[str, Any] = dict.fromkeys(("train", "val", "test"), _absent)
    return read_run(dataclasses.replace(experiment, **absent), place, which=which)


def _absent(key: Any) -> Any:
    del key
    raise ValueError("a run that was opened from its folder has no tasks to draw. Call its recipe to load the data.")


def recipe_of(place: RunFolder, record: dict[str, Any], *, changed_recipe: bool = False) -> Recipe:
    """The recipe that made a run; one of a user's must be the same as then.

    **Arguments:** `place`, the run's folder; `record`, its `run.json`; `changed_recipe`, as in `open_run`.

    **Returns:** a `Recipe`.

    **Raises:** `RunFolderError` where there was none, it has changed, or it lies in the run folder; `RecipeError` where
    it is gone.

    >>> recipe_of(RunFolder("runs/mine"), {"recipe": "maml", "digest": None}).name
    'maml'
    """
    name = record["recipe"]
    if name is None:
        raise RunFolderError(
            f"{place.path} was made by no recipe, so nothing says how to build its learner. Give "
            "mk.open_run(folder, experiment=...) the experiment, built again."
        )
    if str(place.path.resolve()) in str(os.path.abspath(name.rpartition(":")[0] or ".")):
        raise RunFolderError(f"the recipe {name} lies in the run folder {place.path}, from which no code is run.")
    try:
        found = find(name)
    except RecipeError as error:
        raise RecipeError(f"the recipe of {place.path} is gone: {error}") from error
    if found.digest != record["digest"] and not changed_recipe:
        raise RunFolderError(
            f"the recipe {name} has changed since {place.path} was made, so it may build another learner. Restore it, "
            "or say that the change does not matter: --changed-recipe (in Python changed_recipe=True)."
        )
    return found


def recalled(place: RunFolder, **how: Any) -> Recall | None:
    """The classes of a run, for its recipe; `None` where its tasks have none."""
    data = read_data(place)
    return None if data is None else Recall(data, **how)


def seen_classes(data: DataRecord) -> tuple[str, ...]:
    """All classes that the learner of a run was trained on."""
    return tuple(dict.fromkeys((*data.seen, *data.classes["train"])))
