"""The `metakit` command."""

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Column, Table

from metakit._errors import nearest
from metakit.tasks import cache_directory
from metakit.train import ConfigChangedError

from . import _evaluate, _train
from ._algorithms import ALGORITHMS
from ._config import Evaluate, List, Train, UsageError
from ._presets import preset, unused_options

_COMMANDS = ("train", "evaluate", "list")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    **Arguments:** `arguments`, without the program's name; default those of the process.

    **Returns:** the exit status: 0, 1 for an error, 2 for options that do not fit, 130 after Ctrl-C.

    >>> main(["list"])  # doctest: +ELLIPSIS
    algorithm ...
    0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    console, errors = Console(), Console(stderr=True)
    if given == ["--version"]:
        console.print(importlib.metadata.version("metakit"), highlight=False)
        return 0
    try:
        _check_words(given)
    except UsageError as error:
        errors.print(f"metakit: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    try:
        options = tyro.cli(
            Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
            | Annotated[List, tyro.conf.subcommand("list")],
            prog="metakit",
            args=given,
            description="Meta-learning for JAX: train, evaluate, list. With --version alone, says its version.",
        )
    except SystemExit as stop:  # tyro has explained itself, or shown its help
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _dispatch(options, console)
    except KeyboardInterrupt:
        return _train.INTERRUPTED
    except (ValueError, OSError, RuntimeError, TypeError, ArithmeticError) as error:
        if options.traceback:
            raise
        misused = isinstance(error, UsageError | ConfigChangedError)
        kind = "" if misused else f"{type(error).__name__}: "
        errors.print(f"metakit: {kind}{error}", highlight=False, markup=False, soft_wrap=True)
        return 2 if misused else 1


def _check_words(given: list[str]) -> None:
    """Suggest the nearest command and algorithm before anything else is parsed."""
    if not given or given[0].startswith("-"):
        return
    if given[0] not in _COMMANDS:
        raise UsageError(f"{given[0]!r} is no command. {nearest(given[0], _COMMANDS)}")
    if given[0] == "train" and len(given) > 1 and not given[1].startswith("-") and given[1] not in ALGORITHMS:
        raise UsageError(f"the algorithm {given[1]!r} is not known. {nearest(given[1], ALGORITHMS)}")


def _dispatch(options: Train | Evaluate | List, console: Console) -> int:
    if isinstance(options, List):
        return _list(console)
    if options.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
    return _train.run(options, console) if isinstance(options, Train) else _evaluate.run(options, console)


def _list(console: Console) -> int:
    console.print(_algorithms())
    console.print()
    console.print(_presets())
    return 0


def _table(*columns: Column | str) -> Table:
    """Without borders, so that every number fits into 80 columns."""
    return Table(*columns, box=None, pad_edge=False, collapse_padding=True, padding=(0, 1))


def _algorithms() -> Table:
    table = _table("algorithm", "what it is")
    for name, entry in ALGORITHMS.items():
        table.add_row(name, entry.about)
    return table


def _presets() -> Table:
    shown = ("way", "shot", "queries", "steps", "meta_batch", "rate", "inner_steps", "norm_policy")
    table = _table(
        Column("preset", no_wrap=True),
        *(Column(name.replace("_", "\n"), no_wrap=True, justify="right") for name in shown),
    )
    for name, entry in ALGORITHMS.items():
        for data in entry.data:
            if data == "folder":  # as glyphs
                continue
            values, unused = preset(name, data), unused_options(name, data)
            table.add_row(f"{name} {data}", *("" if key in unused else str(values[key]) for key in shown))
    return table
