"""Helpers for error messages that say what to try."""

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence for the end of an error: the closest option to a misspelt name, then all of them.

    >>> nearest("mamll", ["maml", "matching"])
    "Did you mean 'maml'? Known: maml, matching."
    >>> nearest("zzz", ["maml", "matching"])
    'Known: maml, matching.'
    """
    known = list(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."


def require_option(argument: str, value: Any, options: Iterable[str]) -> None:
    """A `ValueError` that names the argument and the closest option.

    >>> require_option("distance", "cosine", ("cosine", "squared_euclidean"))
    """
    if value not in options:
        raise ValueError(f"{argument}={value!r} is not known. {nearest(str(value), options)}")
