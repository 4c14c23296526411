"""Checks of a metric learner's fields."""

from typing import Any

from jaxtyping import ArrayLike

from metakit._errors import nearest
from metakit._hyperparameter import Hyperparameter, as_hyperparameter


def require_option(argument: str, value: Any, options: tuple[str, ...]) -> None:
    """A `ValueError` that names the argument and the closest option."""
    if value not in options:
        raise ValueError(f"{argument}={value!r} is not known. {nearest(str(value), options)}")


def scalar(argument: str, value: Hyperparameter | ArrayLike) -> Hyperparameter:
    """A hyperparameter of one number: one for each class or query would broadcast into a plausible result."""
    number = as_hyperparameter(value)
    if number.value.ndim != 0:
        raise ValueError(f"{argument} must be one number, got shape {list(number.value.shape)}.")
    return number
