"""A run in TensorBoard."""

import os
import pathlib
import time
from typing import Any

from metakit._errors import MissingExtraError

from ._assess import TRAINED
from ._events import Started
from ._tracker import AbstractTracker, Numbers, options, validation_name, word

_SECONDS_BETWEEN_FLUSHES = 10


class TensorBoard(AbstractTracker):
    """A listener that writes a run's numbers to event files for TensorBoard.

    `train/` holds loss, gradient norm and steps per second; `validation/` the score and the ends of its interval;
    `test/` the mean of each row of the table, at the last step; `series/` scores against what they count. The options
    are on the page of hyperparameters. A run that goes on has its earlier steps written again from its log, and
    TensorBoard is told to forget what stood there before, so that each step is shown once.

    **Arguments:** `folder` for the event files of one run; `None` (the default) is `tensorboard/` in the run folder.

    **Raises:** `MissingExtraError` where tensorboardX is not installed: `pip install "metakit[tensorboard]"`.

    >>> import metakit as mk
    >>> mk.experiments.TensorBoard("curves/first").folder.name
    'first'
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        try:
            import tensorboardX  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError("tensorboard", "tensorboardX") from error
        self.folder = None if folder is None else pathlib.Path(folder)
        self._library: Any = tensorboardX
        self._writer: Any = None

    def _open(self, started: Started) -> bool:
        folder = started.folder / "tensorboard" if self.folder is None else self.folder
        self._writer = self._library.SummaryWriter(
            str(folder),
            purge_step=0,
            flush_secs=_SECONDS_BETWEEN_FLUSHES,
            # The library names files by the second: one begun within the same second would overwrite the other.
            filename_suffix=f".{time.time_ns()}",
        )
        experiment = started.experiment
        values = {name: _plain(value) for name, value in options(experiment).items() if value is not None}
        measures = {validation_name(experiment): 0.0, f"test/{word(TRAINED)}": 0.0}
        about, begun, _ = self._library.summary.hparams(values, measures)
        for summary in (about, begun):
            self._writer.file_writer.add_summary(summary)
        return False

    def _put(self, numbers: Numbers) -> None:
        for name, value in numbers.values.items():
            self._writer.add_scalar(name, value, numbers.step)

    def _close(self, *, is_whole: bool) -> None:
        del is_whole
        self._writer.close()


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
