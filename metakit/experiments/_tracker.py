"""What TensorBoard and Weights & Biases have in common: the numbers of a run's log by name, against its steps."""

import abc
import math
import re
from typing import Any, NamedTuple

from metakit import train

from ._events import Reported, RunEvent, Started
from ._experiment import Experiment
from ._folder import RunFolder
from ._listeners import lines
from ._record import identity


class Numbers(NamedTuple):
    """Some of a run's numbers by name, at a step; `counted` names what is counted instead where it is not steps."""

    values: dict[str, float]
    step: int
    counted: str | None = None


class AbstractTracker(abc.ABC):
    """A listener that writes what the log holds elsewhere too, in the log's own numbers.

    A run that goes on is told of its last checkpoint first: what the log keeps up to there is written again for a
    tracker that does not hold it. Numbers that are not finite are left out: a speed that is not known, for one.
    """

    _started: Started
    _is_open = False
    _last: RunEvent | None = None

    def __call__(self, event: RunEvent) -> None:
        self._last = event
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, train.Resumed):
            if not self._begin():
                self._write(RunFolder(self._started.folder).records())
        else:
            self._write(lines(event))

    def close(self) -> None:
        """End the files of this run; another may begin."""
        if self._is_open:
            self._is_open = False
            self._close(is_whole=isinstance(self._last, Reported | train.Interrupted))

    def _begin(self) -> bool:
        holds_earlier = self._open(self._started)
        self._is_open = True
        return holds_earlier

    def _write(self, told: list[dict[str, Any]]) -> None:
        for line in told:
            if not self._is_open:
                self._begin()
            for numbers in numbers_of(line, self._started.experiment):
                known = {name: value for name, value in numbers.values.items() if math.isfinite(value)}
                self._put(numbers._replace(values=known))

    @abc.abstractmethod
    def _open(self, started: Started) -> bool:
        """Begin to write; whether the steps before a checkpoint are there already."""

    @abc.abstractmethod
    def _put(self, numbers: Numbers) -> None:
        """Write some numbers."""

    @abc.abstractmethod
    def _close(self, *, is_whole: bool) -> None:
        """End what was begun; `is_whole` unless an error ended the run."""


def numbers_of(line: dict[str, Any], experiment: Experiment) -> list[Numbers]:
    """What a line of the log says in numbers."""
    if line["event"] == "progress":
        names = ("loss", "gradient_norm", "steps_per_second")
        return [Numbers({f"train/{name}": line[name] for name in names}, line["step"])]
    if line["event"] == "validated":
        return [Numbers(_with_ends(validation_name(experiment), line), line["step"])]
    if line["event"] == "test":
        values = {f"test/{word(row)}": score["mean"] for row, score in line["scores"].items()}
        values |= {f"test/{name}": line[name] for name in ("nll", "calibration_error") if line[name] is not None}
        values |= {} if line["alone"] is None else {"test/each_query_alone": line["alone"]["mean"]}
        return [Numbers(values, experiment.steps)]
    name = f"series/{word(line['event'])}"
    scores = enumerate(line["scores"], start=line["first"])
    return [Numbers(_with_ends(name, interval), count, counted=name) for count, interval in scores]


def options(experiment: Experiment) -> dict[str, Any]:
    """The recipe and its options, or an experiment's own: what is known as hyperparameters."""
    known = identity(experiment)
    return {"recipe": known["recipe"], **known["options"]}


def validation_name(experiment: Experiment) -> str:
    """Under which the validation score is written."""
    return f"validation/{word(experiment.scores.name)}"


def word(name: str) -> str:
    """A name in letters that both take as they are."""
    return re.sub(r"[^\w.-]+", "_", name)


def _with_ends(name: str, interval: dict[str, Any]) -> dict[str, float]:
    return {name: interval["mean"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
