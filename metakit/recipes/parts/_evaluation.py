"""A trained run, tested on other tasks."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from metakit.experiments import Experiment, RunFolder, arrays_in_words, check_fit, read_data, trained_learner

from ._open import recipe_of
from ._option_error import OptionError, option
from ._recall import Recall
from ._recipe import Option, Recipe
from ._start import filled


def test_options(recipe: Recipe, data: str | None) -> dict[str, Option]:
    """The options of a recipe that an evaluation may choose anew.

    **Arguments:** `recipe`; `data`, what the run was trained on.

    **Returns:** options by the names that they have in an evaluation.

    >>> from metakit.recipes import find
    >>> sorted(test_options(find("maml"), "linear"))
    ['inner_steps', 'num_tasks', 'queries', 'shot']
    """
    return {one.in_test: one for one in recipe.options(data).values() if one.in_test is not None}


def evaluation(
    folder: pathlib.Path,
    given: Mapping[str, Any],
    *,
    classes: Literal["test", "new"] = "test",
    changed_recipe: bool = False,
) -> tuple[Experiment, Any]:
    """The experiment of a run with other test tasks, and its learner as it is tested.

    **Arguments:** `folder` of the run; `given`, options by their names in an evaluation, such as `{"way": 10}`;
    `classes`, whether to test on the recorded test classes or on those that came later; `changed_recipe`, as in
    `open_run`.

    **Returns:** an `Experiment` and a learner.

    **Raises:** `OptionError` and what `open_run` raises.

    >>> evaluation(pathlib.Path("no/such/folder"), {})
    Traceback (most recent call last):
    ...
    metakit.experiments...RunFolderError: no/such/folder is no run folder: it does not exist...
    """
    place = RunFolder(folder)
    record = place.read_record()
    recipe = recipe_of(place, record, changed_recipe=changed_recipe)
    trained, data = record["options"], read_data(place)
    known = test_options(recipe, trained.get("data"))
    values = dict(trained)
    for name, value in given.items():
        if name in known:
            values[known[name].name] = str(value) if isinstance(value, pathlib.Path) else value
    blank = recipe.build(trained, recall=None if data is None else Recall(data, blank=True))
    learner = trained_learner(blank, place, blank.tested)
    recall = None if data is None else Recall(data, evaluation=True, test_on=classes)
    try:
        experiment = recipe.build(values, recall=recall)
    except OptionError as error:
        raise OptionError(_as_in_evaluation(str(error), known)) from error
    if "num_tasks" in given and "num_tasks" not in known:
        experiment = dataclasses.replace(experiment, test_tasks=given["num_tasks"])
    check_fit(arrays_in_words(learner), arrays_in_words(experiment.learner), str(folder))
    return experiment, experiment.as_tested(filled(experiment.learner, learner))


def _as_in_evaluation(message: str, known: Mapping[str, Option]) -> str:
    for name, one in known.items():
        message = message.replace(option(one.name), option(name))
    return message
