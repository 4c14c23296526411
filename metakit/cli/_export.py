"""`metakit export`: a run for a process without metakit."""

import dataclasses
import pathlib
from typing import Annotated

import tyro
from rich.console import Console

from metakit import experiments, recipes

from ._parse import parse
from ._usage import say


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's adapt and predict as jax.export artefacts, and its weights as safetensors."""

    run: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    out: pathlib.Path
    """Folder to make."""
    shot: int = 1
    """Support examples of each class (for curves in all)."""
    way: int | None = None
    """Classes in a support set; none for curves."""
    platforms: tuple[str, ...] = ()
    """Such as cpu cuda; by default the current one."""
    changed_recipe: bool = False
    """Export a run whose recipe, of your own, has changed since."""


def run(words: list[str], console: Console) -> int:
    """Export; returns the exit status."""
    options = parse(Export, words, "export")
    opened = recipes.open_run(options.run, changed_recipe=options.changed_recipe)
    platforms = options.platforms or None
    place = experiments.export(opened, options.out, way=options.way, shot=options.shot, platforms=platforms)
    say(console, f"exported to {place}: adapt.bin, predict.bin, weights.safetensors, export.json")
    return 0
