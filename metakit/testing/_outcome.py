"""How a check ends, and how two results are compared."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import equinox as eqx
import jax
import numpy as np

from metakit._tree import is_key
from metakit._wording import describe


class CheckFailed(AssertionError):
    """A check that does not hold.

    **Arguments:** `found`, what was found, a sentence; `advice`, what to try.

    >>> print(CheckFailed("meta_loss returned float32[5].", "Return the mean."))
    meta_loss returned float32[5]. Return the mean.
    """

    def __init__(self, found: str, advice: str):
        super().__init__(f"{found} {advice}")
        self.found = found
        self.advice = advice


class CheckSkipped(Exception):
    """A check that cannot be made here.

    **Arguments:** the reason, a sentence.

    >>> print(CheckSkipped("There is one device."))
    There is one device.
    """


def check_of(advice: str, *, as_it_is: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A check whose every error is a `CheckFailed` with advice.

    It is made in float64 wherever the learner runs so; `as_it_is` leaves the learner in its own precision.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checked(subject: Any, **options: Any) -> Any:
            exact = subject if as_it_is else subject.exact
            with jax.enable_x64(True) if exact is not subject else nullcontext():
                try:
                    return function(exact, **options)
                except (CheckFailed, CheckSkipped):
                    raise
                except Exception as error:  # the learner's own code may raise anything
                    raise CheckFailed(f"It raised {in_short(error)}", advice) from error

        return checked

    return decorate


def in_short(error: BaseException) -> str:
    """The first line of an error, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    words = words if len(words) <= 240 else f"{words[:237]}..."
    return words if words.endswith((".", "!", "?")) else f"{words}."


def require_close(actual: Any, expected: Any, subject: Any, what: str, advice: str, **tolerances: float) -> None:
    """Every array of two trees within the subject's tolerances, or those given; NaN equals NaN."""
    tolerances = {"rtol": subject.rtol, "atol": subject.atol, **tolerances}
    for path, a, b in _pairs(actual, expected, what, advice):
        a, b = np.asarray(a), np.asarray(b)
        wrong = ~np.isclose(a, b, **tolerances, equal_nan=True)
        if wrong.any():
            worst = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(wrong, np.abs(a - b), -1)), a.shape))
            at = f" at {list(worst)}" if worst else ""
            raise CheckFailed(f"{what}: {path}{at} is {a[worst]:.9g} instead of {b[worst]:.9g}.", advice)


def require_equal(actual: Any, expected: Any, what: str, advice: str) -> None:
    """Every array of two trees the same bit for bit."""
    for path, a, b in _pairs(actual, expected, what, advice):
        if a.dtype != b.dtype:
            raise CheckFailed(f"{what}: {path} is {describe(a)} instead of {describe(b)}.", advice)
        if not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=bool(np.issubdtype(a.dtype, np.inexact))):
            raise CheckFailed(f"{what}: {path} has other bits.", advice)


def _pairs(actual: Any, expected: Any, what: str, advice: str) -> list[tuple[str, Any, Any]]:
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        raise CheckFailed(
            f"{what}: the result has another structure, {jax.tree.structure(actual)} instead of "
            f"{jax.tree.structure(expected)}.",
            advice,
        )
    pairs = []
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        if not (eqx.is_array(a) and eqx.is_array(b)):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "the result"
        if a.shape != b.shape:
            raise CheckFailed(f"{what}: {name} is {describe(a)} instead of {describe(b)}.", advice)
        if is_key(a):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        pairs.append((name, a, b))
    return pairs
