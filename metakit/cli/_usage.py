"""What all commands share: options that every one of them has, and errors of how it was used."""

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console


class UsageError(ValueError):
    """A command that cannot be understood; shown without a traceback, exit status 2."""


def say(console: Console, words: str) -> None:
    """A sentence as it is, without colours or line breaks of the terminal's."""
    console.print(words, highlight=False, markup=False, soft_wrap=True)


# Errors of the library that are the user's to mend, by name: naming their classes would import JAX.
_MISUSE = re.compile("(Usage|Option|Recipe|RunFolder|Predict|Compare|Export|ConfigChanged|Unfit|MissingExtra)Error")


def is_misuse(error: BaseException) -> bool:
    """Whether an error is about how the command was used, rather than about what happened while it ran."""
    return any(_MISUSE.fullmatch(kind.__name__) for kind in type(error).__mro__)


@dataclasses.dataclass(frozen=True)
class Common:
    """Options that every command has."""

    traceback: bool = False
    """Show the whole traceback of an error."""
    compilation_cache: bool = True
    """Keep compiled programs for the next run."""

    def apply(self) -> None:
        """Tell JAX where compiled programs are kept; its module has been imported by the command."""
        if self.compilation_cache and "jax" in sys.modules:
            tasks = sys.modules["metakit.tasks"]
            sys.modules["jax"].config.update("jax_compilation_cache_dir", str(tasks.cache_directory() / "compiled"))


def without_common(words: Sequence[str]) -> tuple[list[str], Common]:
    """The words of a command without those that every command has, wherever they stand."""
    others = [word for word in words if word not in ("--traceback", "--no-compilation-cache")]
    return others, Common("--traceback" in words, "--no-compilation-cache" not in words)


def nearest_command(words: Sequence[str], commands: Iterable[str]) -> str:
    """What is wrong with the first word."""
    if not words:
        return f"which command? It is one of {', '.join(commands)}."
    close = difflib.get_close_matches(words[0].casefold(), list(commands), n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{words[0]!r} is no command.{hint} Known: {', '.join(commands)}."
