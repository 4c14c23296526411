"""Evaluation: per-task scores, intervals that say how far to trust a mean, and baselines."""

from . import baselines as baselines
from ._alone import one_at_a_time as one_at_a_time
from ._calibration import Calibration as Calibration, calibration as calibration, reliability as reliability
from ._compare import Comparison as Comparison, compare as compare
from ._interval import (
    Interval as Interval,
    bootstrap as bootstrap,
    paired_difference as paired_difference,
    student_t as student_t,
)
from ._scores import scores as scores, scores_of as scores_of
