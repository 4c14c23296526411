"""The experiment of a run that is to be continued."""

import pathlib
from collections.abc import Mapping
from typing import Any

from metakit import train
from metakit.experiments import Experiment, RunFolder, RunFolderError, read_data

from ._devices import offer
from ._open import recalled, recipe_of
from ._option_error import OptionError
from ._recipe import Recipe
from ._start import start_from


def resumed(
    recipe: Recipe | Any, place: RunFolder, given: Mapping[str, Any], *, changed_recipe: bool = False
) -> Experiment:
    """The experiment of a run, with the classes that it has recorded.

    **Arguments:** `recipe` that made it; `place`, its folder; `given`, options that must agree with the recorded ones;
    `changed_recipe`, as in `open_run`.

    **Returns:** an `Experiment`, for `mk.experiments.run`.

    **Raises:** `mk.train.ConfigChangedError` naming each option that differs; `RunFolderError` where the recipe or the
    pictures have changed since.

    >>> resumed(None, RunFolder("no/such/folder"), {})
    Traceback (most recent call last):
    ...
    metakit.experiments...RunFolderError: no/such/folder is no run folder: it does not exist...
    """
    record = place.read_record()
    values = record["options"]
    asked = {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in given.items()}
    asked |= {"recipe": recipe.name}
    known = {"recipe": record["recipe"], **values}
    changes = {name: (known.get(name), value) for name, value in asked.items() if known.get(name) != value}
    if changes:
        raise train.ConfigChangedError(str(place.path), changes)
    recipe_of(place, record, changed_recipe=changed_recipe)
    offer(values.get("devices", 1))
    recall = recalled(place)
    if record["start_from"] is not None:
        experiment = start_from(recipe, values, pathlib.Path(record["start_from"]), recall=recall)
    else:
        experiment = recipe.build(values, recall=recall)
    recorded = read_data(place)
    if recorded is not None and experiment.data is not None:
        for part, before in recorded.fingerprints.items():
            if experiment.data.fingerprints[part] != before:
                raise RunFolderError(
                    f"the pictures of the classes of {part!r} have changed since {place.path} was begun, so it cannot "
                    "be continued as the run that it was. Restore them, or train again."
                )
    return experiment


def seeds(recipe: Recipe, given: Mapping[str, Any], count: int, *, smoke: bool = False) -> dict[str, Experiment]:
    """The experiments of several seeds, from `--seed` on, for `mk.experiments.sweep`.

    **Arguments:** `recipe`; `given`, options as in `Recipe.settle`; `count` of seeds, at least 2; `smoke`.

    **Returns:** experiments by name.

    **Raises:** `OptionError` for fewer than two seeds, or a recipe without an option `seed`.

    >>> from metakit.recipes import find
    >>> list(seeds(find("matching"), {"data": "linear"}, 2))
    ['seed-0', 'seed-1']
    """
    if count < 2:
        raise OptionError(f"--seeds must be at least 2, got {count}. For one, use --seed.")
    settled = recipe.settle(given, smoke=smoke)
    if "seed" not in settled:
        raise OptionError(f"--seeds needs a recipe with an option --seed, which {recipe.name} has not.")
    offer(settled.get("devices", 1))
    first = settled["seed"]
    return {
        f"seed-{seed}": recipe.build(recipe.settle({**given, "seed": seed}, smoke=smoke))
        for seed in range(first, first + count)
    }
