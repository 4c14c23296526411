"""Checks of a learner's fields."""

from jaxtyping import ArrayLike

from metakit._hyperparameter import Hyperparameter, as_hyperparameter


def scalar(argument: str, value: Hyperparameter | ArrayLike) -> Hyperparameter:
    """A hyperparameter of one number: one for each class or query would broadcast into a plausible result."""
    number = as_hyperparameter(value)
    if number.value.ndim != 0:
        raise ValueError(f"{argument} must be one number, got shape {list(number.value.shape)}.")
    return number
