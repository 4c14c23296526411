"""Listeners: who is told of a run's events, and that one of them failing must not end the run."""

import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from metakit import train

from ._events import RunEvent, Tested
from ._folder import RunFolder
from ._record import assessment_as_record

Listener = Callable[[Any], Any]


class Audience:
    """All listeners of a run; one that raises is left out from then on, and said so once."""

    def __init__(self, listeners: Iterable[Listener]):
        self.listeners = list(listeners)

    def __call__(self, event: RunEvent) -> None:
        for listener in list(self.listeners):
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - whatever a user's listener raises, training goes on
                self.listeners.remove(listener)
                where = traceback.extract_tb(error.__traceback__)[-1]
                sys.stderr.write(
                    f"metakit: the listener {_name(listener)} raised {type(error).__name__}: {error} "
                    f"({where.filename}:{where.lineno}). It hears nothing more of this run, which goes on.\n"
                )


def _name(listener: Listener) -> str:
    return getattr(listener, "__name__", type(listener).__name__)


class Log:
    """The log of a run, one JSON line for each dispatch, validation and test."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __call__(self, event: RunEvent) -> None:
        if isinstance(event, train.Progress):
            self.folder.log(event="progress", **event._asdict())
        elif isinstance(event, train.Validated):
            interval = next(iter(event.result.values()))
            scores = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            self.folder.log(event="validated", step=event.step, is_best=event.is_best, **scores)
        elif isinstance(event, Tested):
            record = assessment_as_record(event.assessment)
            series = record.pop("series")
            self.folder.log(event="test", **record)
            for name, counted in series.items():
                self.folder.log(event=name, **counted)
