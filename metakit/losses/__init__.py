"""Losses of outputs against targets, each with an explicit reduction.

A reduction is part of a published result (MAML's inner loss is a *sum* over examples divided by the shot), so none of
these has a default.
"""

from ._losses import (
    Loss as Loss,
    Reduction as Reduction,
    cross_entropy as cross_entropy,
    gaussian_nll as gaussian_nll,
    squared_error as squared_error,
)
