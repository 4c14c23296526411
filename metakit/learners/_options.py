"""Checks of a learner's fields."""

from collections.abc import Callable

import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike

from metakit._hyperparameter import Hyperparameter, as_hyperparameter


def scalar(argument: str, value: Hyperparameter | ArrayLike) -> Hyperparameter:
    """A hyperparameter of one number: one for each class or query would broadcast into a plausible result."""
    number = as_hyperparameter(value)
    if number.value.ndim != 0:
        raise ValueError(f"{argument} must be one number, got shape {list(number.value.shape)}.")
    return number


def positive(argument: str, value: Hyperparameter | ArrayLike) -> Hyperparameter:
    """A hyperparameter of one finite number above 0."""
    return _checked(argument, value, lambda number: 0 < number < np.inf, "a finite number above 0")


def not_negative(argument: str, value: Hyperparameter | ArrayLike) -> Hyperparameter:
    """A hyperparameter of one finite number of at least 0."""
    return _checked(argument, value, lambda number: 0 <= number < np.inf, "a finite number of at least 0")


def fraction(argument: str, value: Hyperparameter | ArrayLike, *, below_one: bool = False) -> Hyperparameter:
    """A hyperparameter of one number from 0 to 1, or to below 1."""
    if below_one:
        return _checked(argument, value, lambda number: 0 <= number < 1, "from 0 to below 1")
    return _checked(argument, value, lambda number: 0 <= number <= 1, "from 0 to 1")


def _checked(
    argument: str, value: Hyperparameter | ArrayLike, fits: Callable[[float], bool], wanted: str
) -> Hyperparameter:
    """A value that JAX is tracing is taken on trust."""
    hyperparameter = scalar(argument, value)
    if not isinstance(hyperparameter.value, Tracer):
        number = float(np.asarray(hyperparameter.value))
        if not fits(number):
            raise ValueError(f"{argument} must be {wanted}, got {number:g}.")
    return hyperparameter


def require_sizes(**sizes: int) -> None:
    """Sizes are whole numbers from 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise ValueError(f"{name} must be a whole number, got {size!r} ({type(size).__name__}).")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
