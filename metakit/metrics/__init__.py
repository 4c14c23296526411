"""Scores of one task's predictions; `mk.evaluate` maps them over thousands of tasks."""

from ._metrics import (
    Metric as Metric,
    accuracy as accuracy,
    expected_calibration_error as expected_calibration_error,
    log_density as log_density,
    mean_squared_error as mean_squared_error,
    negative_log_likelihood as negative_log_likelihood,
)
