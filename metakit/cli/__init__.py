"""The `metakit` command: one module for each command, imported when it is called."""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ._usage import UsageError, is_misuse, nearest_command, say, without_common

# Each is a module of this folder, with a function `run(words, console) -> status`.
COMMANDS = {
    "train": "meta-train a recipe, test it on unseen tasks, and write a report",
    "evaluate": "test the learner of a run on its test tasks, or on others",
    "predict": "learn new classes, or a new curve, from a few examples, and label others",
    "compare": "set runs side by side: one table, one picture",
    "choose": "try the sensible learners on your own data within some minutes",
    "export": "write a run's adapt and predict for a process without metakit",
    "list": "show the recipes and their published options",
}
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    **Arguments:** `arguments`, without the program's name; default those of the process.

    **Returns:** the exit status: 0, 1 for an error, 2 for options that do not fit, 130 after Ctrl-C.

    >>> main(["--help"])
    usage: metakit ...
    0
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    console, errors = Console(), Console(stderr=True)
    if given == ["--version"]:
        console.print(importlib.metadata.version("metakit"), highlight=False)
        return 0
    if not given or given[0] in ("-h", "--help"):
        _help(console)
        return 0 if given else 2
    words, common = without_common(given)
    try:
        if not words or words[0] not in COMMANDS:
            raise UsageError(nearest_command(words, COMMANDS))
        command = importlib.import_module(f"._{words[0]}", __name__)
        common.apply()
        return command.run(words[1:], console)
    except SystemExit as stop:  # tyro has explained itself, or shown its help
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError, TypeError, ArithmeticError, ImportError) as error:
        if common.traceback:
            raise
        misused = is_misuse(error)
        kind = "" if misused else f"{type(error).__name__}: "
        say(errors, f"metakit: {kind}{error}")
        return 2 if misused else 1


def _help(console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for name, about in COMMANDS.items():
        table.add_row(f"  {name}", about)
    say(console, "usage: metakit COMMAND ...\n\nMeta-learning for JAX.\n")
    console.print(table)
    say(console, "\n'metakit COMMAND --help' explains one, 'metakit train maml --help' a recipe's options.")
    say(console, "'metakit --version' says which metakit this is.")
