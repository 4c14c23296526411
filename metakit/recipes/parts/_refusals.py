"""What the library refuses of a recipe's options, said in the words of the options."""

import contextlib
import re
from collections.abc import Iterator

from metakit.tasks import DecodeError

from ._option_error import OptionError, option

# Arguments of the library by the settings that they are; some differ between training and test.
_OF_EITHER = {"way": "way", "shot": "shot", "queries": "queries", "presentations": "shot", "num_steps": "inner_steps"}
_SETTINGS = _OF_EITHER | {"norm_policy": "norm_policy", "path": "path"}
# `norm_policy='joint'`, `way must lie`, `shot + queries`: where a sentence speaks of an argument by its name.
_NAME = re.compile(rf"(?<![\w/,-])({'|'.join(_SETTINGS)})(='?([\w-]+)'?|(?= must | <= | [+*] ))")
_POLICY = re.compile(r"^norm_policy='(\w+)' is not known\..* Known: (.*)\.$")
_CALL = re.compile(r"\w\(")


@contextlib.contextmanager
def as_options(prefix: str = "", *, classes: str = "") -> Iterator[None]:
    """Turn what is refused inside into a `OptionError`.

    `prefix` is `"test_"` where it is about the test; `classes` says which ones the pool has."""
    try:
        yield
    except (OptionError, DecodeError):  # a broken file is an error of its own
        raise
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        message = str(error).replace("number of classes in the pool", f"number of {classes} classes")
        raise OptionError(in_options(message, prefix)) from error


def in_options(message: str, prefix: str = "") -> str:
    """A library's error with options for arguments, and without the sentences that say what to call.

    >>> in_options("norm_policy='joint' is not known. Known: inductive.")
    '--norm-policy joint is none that this algorithm has; it has inductive.'
    >>> in_options("way must lie in 1..91, got 300. Use a pool with more, as rotated(pool).", "test_")
    '--test-way must lie in 1..91, got 300.'
    >>> in_options("path must be a folder, but /runs/way=5 is none.")
    '--path must be a folder, but /runs/way=5 is none.'
    """

    def as_option(found: re.Match[str]) -> str:
        name, _, value = found.groups()
        words = option((prefix if name in _OF_EITHER else "") + _SETTINGS[name])
        return words if value is None else f"{words} {value}"

    message = _POLICY.sub(r"--norm-policy \1 is none that this algorithm has; it has \2.", message)
    first, *others = re.split(r"(?<=\.) (?=[A-Z])", message)
    return _NAME.sub(as_option, " ".join([first, *(s for s in others if not _CALL.search(s))]))
