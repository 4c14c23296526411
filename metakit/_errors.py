"""Helpers for errors that say what to try."""

import difflib
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ._types import Flag


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence for the end of an error: the closest option to a misspelt name, then all of them.

    >>> nearest("mamll", ["maml", "matching"])
    "Did you mean 'maml'? Known: maml, matching."
    >>> nearest("zzz", ["maml", "matching"])
    'Known: maml, matching.'
    """
    known = list(options)
    as_written = {option.casefold(): option for option in known}
    close = difflib.get_close_matches(name.casefold(), as_written, n=1, cutoff=0.5)
    hint = f"Did you mean {as_written[close[0]]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."


def require_option(argument: str, value: Any, options: Iterable[str]) -> None:
    """A `ValueError` that names the argument and the closest option.

    >>> require_option("distance", "cosine", ("cosine", "squared_euclidean"))
    """
    if value not in options:
        raise ValueError(f"{argument}={value!r} is not known. {nearest(str(value), options)}")


def require_number(argument: str, value: Any) -> None:
    """A `TypeError` that names the argument, for what is no number of Python's or NumPy's.

    >>> require_number("rate", 0.1)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a number, got {value!r}.")


def require_whole(argument: str, value: Any) -> None:
    """The same for what is no whole number.

    >>> require_whole("num_steps", 5)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{argument} must be a whole number, got {value!r}.")


class MissingExtraError(ImportError):
    """A package that only some need is not installed.

    **Arguments:** `extra` of metakit that brings it; `package`, its name.

    >>> print(MissingExtraError("tensorboard", "tensorboardX"))
    tensorboardX is not installed. Install it with pip install "metakit[tensorboard]".
    """

    def __init__(self, extra: str, package: str):
        super().__init__(f'{package} is not installed. Install it with pip install "metakit[{extra}]".', name=package)


def raise_or_nan(bad: Flag, tree: Any, error: Callable[[], Exception]) -> Any:
    """Raise where the numbers are known, and give NaN in a compiled program, which cannot raise."""
    if not isinstance(bad, Tracer):
        if bool(bad):
            raise error()
        return tree
    return jax.tree.map(lambda leaf: jnp.where(bad, jnp.asarray(jnp.nan, leaf.dtype), leaf), tree)
