"""Run-time shape and type checks on the public boundary."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from ._tree import any_deleted
from ._types import PRNGKey
from ._wording import in_words, no_key

_P = ParamSpec("_P")
_T = TypeVar("_T")


def typed(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Check the annotated shapes and types of every call.

    The checks run while JAX traces, so a compiled function pays nothing; an eager call pays some tens of microseconds.
    They are made by a function's first call: to make all of them took a third of `import metakit`.
    """

    @functools.cache
    def checked() -> Any:
        return jaxtyped(typechecker=beartype)(function)

    @functools.wraps(function)
    def with_checks(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return checked()(*args, **kwargs)
        except TypeCheckError as error:
            shorter = in_words(error, function, args, kwargs)
            if shorter is None:
                raise
            raise shorter from None
        except RuntimeError as error:
            if any_deleted((args, kwargs)):
                raise ValueError(
                    "an array among the arguments was given away: mk.train.run_steps and fit take the memory of the "
                    "state that they are given. Use the state that they return, and its learner."
                ) from error
            raise

    return with_checks


def keyed(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Check the `key` of every call, for constructors whose other arguments have errors of their own."""

    @functools.wraps(function)
    def with_check(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        key = kwargs.get("key")
        if "key" in kwargs and not isinstance(key, PRNGKey):  # pyright: ignore[reportArgumentType]
            raise no_key(function, key)
        return function(*args, **kwargs)

    return with_check
