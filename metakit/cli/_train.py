"""`metakit train`: a recipe from its first step to its report."""

import dataclasses
import pathlib
import time
from typing import Any

from rich.console import Console

from metakit import experiments, recipes, train
from metakit._errors import nearest
from metakit.experiments import Experiment, RunFolder, RunFolderError, UnfitError
from metakit.recipes import OptionError, Recipe, offer

from ._parse import parse, parse_recipe, value_of

INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class General:
    """The run."""

    run: pathlib.Path | None = None
    """Run folder to make; by default runs/RECIPE-DATA-TIME."""
    resume: pathlib.Path | None = None
    """Run folder to continue."""
    start_from: pathlib.Path | None = None
    """Run folder whose learner to start from; another --seed draws other tasks."""
    seeds: int | None = None
    """Train so many seeds, from --seed on, and report the spread between them beside that between tasks."""
    smoke: bool = False
    """A few steps only: checks that everything works, learns nothing."""
    changed_recipe: bool = False
    """Continue a run whose recipe, of your own, has changed since."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run folder (needs the extra metakit[tensorboard])."""
    wandb: bool = False
    """Log to Weights & Biases (needs the extra metakit[wandb])."""
    quiet: bool = False
    """Show no progress."""


@dataclasses.dataclass(frozen=True)
class Unnamed:
    """Meta-train a recipe: metakit train RECIPE [OPTIONS].

    'metakit list' shows the recipes, 'metakit train RECIPE --help' the options of one. RECIPE may be file.py:function
    or package.module:function."""

    general: General = General()


def run(words: list[str], console: Console) -> int:
    """Train, test and report; returns the exit status."""
    if not words or words[0].startswith("-"):
        parse(Unnamed, words, "train")
        raise OptionError(f"which recipe? {nearest('', recipes.names())}")
    name, words = words[0], words[1:]
    recipe = recipes.find(name)
    resumed = value_of("resume", words)
    place = None if resumed is None else RunFolder(resumed)
    record = None if place is None or _asks_help(words) else place.read_record()
    data = value_of("data", words) or (None if record is None else record["options"].get("data"))
    general, given = parse_recipe(recipe, General, words, f"train {name}", data=data)
    if record is not None:
        assert place is not None
        return _resume(recipe, record, place, general, given, console)
    if general.seeds is not None:
        return _sweep(recipe, given, general, console)
    values = recipe.settle(given, smoke=general.smoke)
    offer(values.get("devices", 1))
    if general.start_from is not None:
        experiment = recipes.start_from(recipe, values, general.start_from)
    else:
        experiment = recipe.build(values)
    folder = general.run or pathlib.Path("runs") / _name_now(recipe, values)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(
            f"--run {folder} exists and is not empty. Choose another folder, or continue it with --resume {folder}."
        )
    return _go(_smoked(experiment, values) if general.smoke else experiment, folder, name, general, console)


def _sweep(recipe: Recipe, given: dict[str, Any], general: General, console: Console) -> int:
    assert general.seeds is not None
    if general.seeds < 2:
        raise OptionError(f"--seeds must be at least 2, got {general.seeds}. For one, use --seed.")
    if general.start_from is not None:
        raise OptionError("--start-from would not be used with --seeds. Leave one of them out.")
    settled = recipe.settle(given, smoke=general.smoke)
    if "seed" not in settled:
        raise OptionError(f"--seeds needs a recipe with an option --seed, which {recipe.name} has not.")
    offer(settled.get("devices", 1))
    folder = general.run or pathlib.Path("runs") / _name_now(recipe, settled)
    built = {}
    for seed in range(settled["seed"], settled["seed"] + general.seeds):
        built[f"seed-{seed}"] = recipe.build(recipe.settle({**given, "seed": seed}, smoke=general.smoke))
    done = experiments.sweep(built, folder, listeners=_listeners(general), quiet=general.quiet)
    if done.between_runs is None:
        console.print(f"continue with the same command and --run {folder}", highlight=False, soft_wrap=True)
        return INTERRUPTED
    say = {"highlight": False, "markup": False, "soft_wrap": True}
    scores = next(iter(built.values())).scores
    console.print(f"over {general.seeds} seeds: {scores.show(done.between_runs)}", **say)
    console.print(f"report: {folder / 'report.md'}", **say)
    return 0


def _asks_help(words: list[str]) -> bool:
    return "-h" in words or "--help" in words


def _name_now(recipe: Recipe, values: dict[str, Any]) -> str:
    words = [pathlib.Path(recipe.name.partition(":")[0]).stem if ":" in recipe.name else recipe.name]
    words += [str(values["data"])] if "data" in values else []
    return "-".join([*words, time.strftime("%Y%m%d-%H%M%S")])


def _smoked(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """A few steps of a recipe that has no options for them."""
    few = {"steps": 4, "validate_every": 2, "validation_tasks": 8, "test_tasks": 20, "meta_batch": 2}
    missing = {name: count for name, count in few.items() if name not in values}
    return dataclasses.replace(experiment, **missing)


def _resume(
    recipe: Recipe,
    record: dict[str, Any],
    place: RunFolder,
    general: General,
    given: dict[str, Any],
    console: Console,
) -> int:
    if general.run is not None:
        raise OptionError(
            f"--run {general.run} would not be used: --resume continues in {general.resume}. Leave it out."
        )
    values = record["options"]
    asked = {name: str(v) if isinstance(v, pathlib.Path) else v for name, v in given.items()}
    asked |= {"recipe": recipe.name}
    known = {"recipe": record["recipe"], **values}
    changes = {name: (known.get(name), value) for name, value in asked.items() if known.get(name) != value}
    if changes:
        raise train.ConfigChangedError(str(place.path), changes)
    if place.finished:
        done = f"{place.path} is finished; nothing is left to do. Its report: {place.report}"
        console.print(done, highlight=False, markup=False, soft_wrap=True)
        return 0
    offer(values.get("devices", 1))
    recipes.recipe_of(place, record, changed_recipe=general.changed_recipe)
    recall = recipes.recalled(place)
    if record["start_from"] is not None:
        experiment = recipes.start_from(recipe, values, pathlib.Path(record["start_from"]), recall=recall)
    else:
        experiment = recipe.build(values, recall=recall)
    _check_unchanged(experiment, place)
    return _go(experiment, place.path, recipe.name, general, console)


def _check_unchanged(experiment: Experiment, place: RunFolder) -> None:
    recorded = experiments.read_data(place)
    if recorded is None or experiment.data is None:
        return
    for part, before in recorded.fingerprints.items():
        if experiment.data.fingerprints[part] != before:
            raise RunFolderError(
                f"the pictures of the classes of {part!r} have changed since {place.path} was begun, so it cannot be "
                "continued as the run that it was. Restore them, or train again."
            )


def _go(experiment: Experiment, folder: pathlib.Path, name: str, general: General, console: Console) -> int:
    how = f"continue with: metakit train {name} --resume {folder}"
    try:
        done = experiments.run(experiment, folder, listeners=_listeners(general), quiet=general.quiet)
    except UnfitError as error:
        raise OptionError(recipes.in_options(str(error), "test_")) from error
    except (KeyboardInterrupt, train.DiskFullError):
        console.print(how, highlight=False, markup=False, soft_wrap=True)
        raise
    except train.NonFiniteLossError:
        checkpoints = RunFolder(folder).checkpoints
        if any(checkpoints.glob("steps/[0-9]*")):
            console.print(f"The checkpoints before it are in {checkpoints}.", highlight=False, soft_wrap=True)
        raise
    if not done.finished:
        console.print(how, highlight=False, markup=False, soft_wrap=True)
        return INTERRUPTED
    return 0


def _listeners(general: General) -> list[Any]:
    asked = {experiments.TensorBoard: general.tensorboard, experiments.WeightsAndBiases: general.wandb}
    return [listener() for listener, is_wanted in asked.items() if is_wanted]
