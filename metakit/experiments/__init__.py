"""Experiments: from an algorithm, a learner and tasks to a trained run, its report and its pictures."""

from . import plots as plots
from ._assess import Assessment as Assessment, Row as Row, assess as assess, try_out as try_out
from ._compare import Compared as Compared, CompareError as CompareError, Comparison as Comparison, compare as compare
from ._display import Display as Display
from ._evaluate import evaluate_again as evaluate_again
from ._events import Reported as Reported, Started as Started, Tested as Tested, Testing as Testing
from ._experiment import DataRecord as DataRecord, Experiment as Experiment, Origin as Origin
from ._export import ExportError as ExportError, export as export
from ._folder import RunFolder as RunFolder, RunFolderError as RunFolderError
from ._loaded import (
    Run as Run,
    check_fit as check_fit,
    read_data as read_data,
    read_run as read_run,
    trained_learner as trained_learner,
)
from ._pictures import Shown as Shown, curves as curves, episode as episode
from ._predict import (
    PredictError as PredictError,
    Predictions as Predictions,
    draw_predictions as draw_predictions,
    predict as predict,
    read_curve as read_curve,
    read_queries as read_queries,
    read_support as read_support,
)
from ._record import arrays_in_words as arrays_in_words
from ._run import UnfitError as UnfitError, run as run
from ._scores import (
    AbstractScores as AbstractScores,
    MetricScores as MetricScores,
    Series as Series,
    accuracy as accuracy,
    log_density as log_density,
    mean_squared_error as mean_squared_error,
    metric as metric,
)
from ._sweep import Sweep as Sweep, sweep as sweep
from ._tensorboard import TensorBoard as TensorBoard
from ._weights_and_biases import WeightsAndBiases as WeightsAndBiases
from ._words import Words as Words
