"""Checks of a learner's fields."""

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
    """A hyperparameter of one number above 0; a value that JAX is tracing is taken on trust."""
    number = scalar(argument, value)
    if not isinstance(number.value, Tracer) and not 0 < float(np.asarray(number.value)) < np.inf:
        raise ValueError(f"{argument} must be a finite number above 0, got {float(np.asarray(number.value))}.")
    return number
