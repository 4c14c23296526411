"""An experiment that starts from the learner of another run."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax

from metakit.experiments import Experiment, RunFolder, RunFolderError, arrays_in_words, check_fit, read_data

from ._open import open_run, seen_classes
from ._option_error import OptionError, option
from ._recall import Recall
from ._recipe import Recipe


def start_from(
    recipe: Recipe | Any, values: Mapping[str, Any], folder: pathlib.Path, *, recall: Recall | None = None
) -> Experiment:
    """The experiment of a recipe, whose learner starts with the numbers of another run's best.

    Classes that have no split of their own are dealt as they were there. Refused is a start that would leave an option
    without effect, and one that has been trained on classes of the test.

    **Arguments:** `recipe`; `values`, all its options, from `Recipe.settle`; `folder` of the other run; `recall`, the
    classes that this run has recorded already, where it is continued.

    **Returns:** an `Experiment`.

    **Raises:** `OptionError`; `RunFolderError` for a folder that is no run.

    >>> start_from(None, {}, pathlib.Path("no/such/folder"))
    Traceback (most recent call last):
    ...
    metakit.experiments...RunFolderError: no/such/folder is no run folder: it does not exist...
    """
    start = f"--start-from {folder}"
    place = RunFolder(folder)
    record = place.read_record()
    if record["recipe"] != recipe.name:
        raise OptionError(f"{start} is a run of {record['recipe']}; this is one of {recipe.name}.")
    theirs = record["options"]
    for name, one in recipe.options(values.get("data")).items():
        if one.held and theirs.get(name) != values[name]:
            raise OptionError(
                f"{start} has {option(name)} {theirs.get(name)}, this run {values[name]}: the learner holds it. Give "
                f"it {theirs.get(name)} too."
            )
    data = read_data(place)
    if theirs.get("data") != values.get("data"):
        data = None  # other classes, whatever their names
    if recall is None and data is not None and values.get("data") == "folder":
        recall = Recall(data)
    experiment = recipe.build(values, recall=recall)
    if experiment.data is not None and data is not None:
        experiment = dataclasses.replace(experiment, data=_not_seen(experiment, seen_classes(data), start))
    try:
        learner = open_run(folder, "best" if experiment.tested == "best" else "last").learner
        check_fit(arrays_in_words(learner), arrays_in_words(experiment.learner), start)
    except RunFolderError as error:
        raise OptionError(f"{start}: {error}") from error
    return dataclasses.replace(experiment, learner=filled(experiment.learner, learner), start_from=str(folder))


def _not_seen(experiment: Experiment, seen: tuple[str, ...], start: str) -> Any:
    """The record of the data, with what the start has seen; refused where that is tested or validated on."""
    data = experiment.data
    assert data is not None
    tested = [name for name in data.classes["test"] if name in set(seen)]
    if tested:
        raise OptionError(
            f"{start} was trained on {len(tested)} of this run's {len(data.classes['test'])} test classes, such as "
            f"{tested[0]!r}. Give this run the split of that one."
        )
    if experiment.tested == "best" and set(data.classes["val"]) & set(seen):
        raise OptionError(
            f"{start} has seen the classes of validation, which could choose nothing here. Add --trainval."
        )
    return dataclasses.replace(data, seen=seen)


def filled(fresh: Any, learner: Any) -> Any:
    """A learner of one structure with the arrays of another."""
    empty, rest = eqx.partition(fresh, eqx.is_array)
    numbers = jax.tree.leaves(eqx.filter(learner, eqx.is_array))
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(empty), numbers), rest)
