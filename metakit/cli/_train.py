"""`metakit train`: a recipe from its first step to its report."""

import dataclasses
import pathlib
import time
from typing import Any

from rich.console import Console

from metakit import experiments, recipes, train
from metakit._errors import nearest
from metakit.experiments import Experiment, RunFolder, UnfitError
from metakit.recipes import OptionError, Recipe

from ._parse import parse, parse_recipe, value_of
from ._usage import say

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
    resume, asks_help = value_of("resume", words), {"-h", "--help"} & set(words)
    place = None if resume is None else RunFolder(resume)
    recorded = {} if place is None or asks_help else place.read_record()["options"]
    data = value_of("data", words) or recorded.get("data")
    general, given = parse_recipe(recipe, General, words, f"train {name}", data=data)
    if place is not None:
        return _resume(recipe, place, given, general, console)
    if general.seeds is not None and general.start_from is not None:
        raise OptionError("--start-from would not be used with --seeds. Leave one of them out.")
    if general.seeds is not None:
        return _sweep(recipes.seeds(recipe, given, general.seeds, smoke=general.smoke), recipe, general, console)
    values = recipe.settle(given, smoke=general.smoke)
    recipes.offer(values.get("devices", 1))
    if general.start_from is not None:
        experiment = recipes.start_from(recipe, values, general.start_from)
    else:
        experiment = recipe.build(values)
    folder = general.run or _new_folder(recipe)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(
            f"--run {folder} exists and is not empty. Choose another folder, or continue it with --resume {folder}."
        )
    return _go(experiment, folder, recipe, general, console)


def _new_folder(recipe: Recipe) -> pathlib.Path:
    name = pathlib.Path(recipe.name.partition(":")[0]).stem if ":" in recipe.name else recipe.name
    return pathlib.Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _resume(recipe: Recipe, place: RunFolder, given: dict[str, Any], general: General, console: Console) -> int:
    if general.run is not None:
        raise OptionError(
            f"--run {general.run} would not be used: --resume continues in {general.resume}. Leave it out."
        )
    if place.finished and recipe.name == place.read_record()["recipe"] and not given:
        say(console, f"{place.path} is finished; nothing is left to do. Its report: {place.report}")
        return 0
    experiment = recipes.resumed(recipe, place, given, changed_recipe=general.changed_recipe)
    return _go(experiment, place.path, recipe, general, console)


def _sweep(built: dict[str, Experiment], recipe: Recipe, general: General, console: Console) -> int:
    folder = general.run or _new_folder(recipe)
    done = experiments.sweep(built, folder, listeners=_listeners(general), quiet=general.quiet)
    if done.between_runs is None:
        say(console, f"continue with the same command and --run {folder}")
        return INTERRUPTED
    say(console, f"over {len(built)} seeds: {next(iter(built.values())).scores.show(done.between_runs)}")
    say(console, f"report: {folder / 'report.md'}")
    return 0


def _go(experiment: Experiment, folder: pathlib.Path, recipe: Recipe, general: General, console: Console) -> int:
    how = f"continue with: metakit train {recipe.name} --resume {folder}"
    try:
        done = experiments.run(experiment, folder, listeners=_listeners(general), quiet=general.quiet)
    except UnfitError as error:
        raise OptionError(recipes.in_options(str(error), "test_")) from error
    except (KeyboardInterrupt, train.DiskFullError):
        say(console, how)
        raise
    except train.NonFiniteLossError:
        checkpoints = RunFolder(folder).checkpoints
        if any(checkpoints.glob("steps/[0-9]*")):
            say(console, f"The checkpoints before it are in {checkpoints}.")
        raise
    if not done.finished:
        say(console, how)
        return INTERRUPTED
    return 0


def _listeners(general: General) -> list[Any]:
    asked = {experiments.TensorBoard: general.tensorboard, experiments.WeightsAndBiases: general.wandb}
    return [listener() for listener, is_wanted in asked.items() if is_wanted]
