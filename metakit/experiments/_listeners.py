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
    """All listeners of a run; one that raises is left out from then on, and said so once.

    Those that have a `close()` are closed when the run ends, however it ends, and one that raises when it is left out.
    """

    def __init__(self, listeners: Iterable[Listener]):
        self.listeners = list(listeners)

    def __call__(self, event: RunEvent) -> None:
        for listener in list(self.listeners):
            if not _tried(listener, listener, event):
                self.listeners = [other for other in self.listeners if other is not listener]
                _tried(listener, _closing(listener), quiet=True)

    def close(self) -> None:
        """Close the listeners that are left."""
        for listener in self.listeners:
            _tried(listener, _closing(listener))
        self.listeners = []


def _tried(listener: Listener, call: Callable[..., Any], *arguments: Any, quiet: bool = False) -> bool:
    """Whether a call of a listener's went well; the run goes on in any case."""
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever a user's listener raises, training goes on
        where = traceback.extract_tb(error.__traceback__)[-1]
        if not quiet:
            sys.stderr.write(
                f"metakit: the listener {_name(listener)} raised {type(error).__name__}: {error} "
                f"({where.filename}:{where.lineno}). It hears nothing more of this run, which goes on.\n"
            )
        return False
    return True


def _closing(listener: Listener) -> Callable[[], Any]:
    return getattr(listener, "close", lambda: None)


def _name(listener: Listener) -> str:
    return getattr(listener, "__name__", type(listener).__name__)


class Log:
    """The log of a run, one JSON line for each dispatch, validation and test."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def __call__(self, event: RunEvent) -> None:
        for line in lines(event):
            self.folder.log(**line)


def lines(event: RunEvent) -> list[dict[str, Any]]:
    """What the log says of an event."""
    if isinstance(event, train.Progress):
        return [{"event": "progress", **event._asdict()}]
    if isinstance(event, train.Validated):
        interval = next(iter(event.result.values()))
        scores = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        return [{"event": "validated", "step": event.step, "is_best": event.is_best, **scores}]
    if isinstance(event, Tested):
        record = assessment_as_record(event.assessment)
        series = record.pop("series")
        return [{"event": "test", **record}, *({"event": name, **counted} for name, counted in series.items())]
    return []
