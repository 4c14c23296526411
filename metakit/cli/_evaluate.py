"""`metakit evaluate`: the learner that a run was tested with, on its own test tasks or on others."""

import dataclasses
import pathlib
import shlex
import sys
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from metakit import experiments, recipes
from metakit.experiments import RunFolder, UnfitError
from metakit.recipes import OptionError

from ._parse import check_known, is_given


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Test the learner of a run on its test tasks, or on others."""

    run: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    num_tasks: int | None = None
    """How many tasks; by default as in the run's own test."""
    seed: int = 1
    """Seed of the test tasks."""
    classes: Literal["test", "new"] = "test"
    """Test on the classes that the run kept for it, or on those that came later (data folder)."""
    changed_recipe: bool = False
    """Evaluate a run whose recipe, of your own, has changed since."""


def run(words: list[str], console: Console) -> int:
    """Evaluate and write the result into the run folder; returns the exit status."""
    folder = next((word for word in words if not word.startswith("-")), None)
    form: Any = Evaluate
    known: dict[str, recipes.Option] = {}
    if folder is not None:
        place = RunFolder(folder)
        record = place.read_record()
        found = recipes.recipe_of(place, record, changed_recipe="--changed-recipe" in words)
        known = recipes.test_options(found, record["options"].get("data"))
        own = (field.name for field in dataclasses.fields(Evaluate))
        check_known(words, (*own, *known), f"an evaluation of {found.name}", "evaluate RUN")
        more = [_field(name, one, record["options"]) for name, one in known.items() if name != "num_tasks"]
        form = dataclasses.make_dataclass("evaluate", more, bases=(Evaluate,), frozen=True)
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(form, args=words, prog="metakit evaluate", description=Evaluate.__doc__, config=config)
    if options.seed < 0:
        raise OptionError(f"--seed must be at least 0, got {options.seed}.")
    given = {name: getattr(options, name) for name in (*known, "num_tasks") if is_given(name, words)}
    command = shlex.join(["metakit", *sys.argv[1:]])
    experiment, learner = recipes.evaluation(
        options.run, given, classes=options.classes, changed_recipe=options.changed_recipe
    )
    place, told = RunFolder(options.run), {"seed": options.seed, "command": command, "console": console}
    try:
        experiments.evaluate_again(experiment, learner, place, **told)
    except UnfitError as error:
        raise OptionError(recipes.in_options(str(error))) from error
    return 0


def _field(name: str, one: recipes.Option, trained: dict[str, Any]) -> tuple[str, Any, Any]:
    about = f"Instead of the run's own, {trained.get(one.name)}."
    return name, Annotated[one.kind | None, tyro.conf.arg(help=about)], dataclasses.field(default=None)
