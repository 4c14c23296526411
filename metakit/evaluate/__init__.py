"""Evaluation: per-task scores, intervals that say how far to trust a mean, and baselines."""

from ._scores import scores as scores, scores_of as scores_of
