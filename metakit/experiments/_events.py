"""What a run tells its listeners, beside the events of training."""

import pathlib
from typing import Any, NamedTuple, TypeAlias

from metakit import train

from ._assess import Assessment
from ._experiment import Experiment


class Started(NamedTuple):
    """A run begins, or goes on.

    **Arguments:** `experiment`; `folder`.

    >>> Started(None, pathlib.Path("runs/mine")).folder.name
    'mine'
    """

    experiment: Experiment | Any
    folder: pathlib.Path


class Testing(NamedTuple):
    """A part of the final test begins.

    **Arguments:** `what`; `number` of the part, from 1; `of` how many.

    >>> Testing("nearest neighbour on pixels", 3, 6).of
    6
    """

    what: str
    number: int
    of: int


class Tested(NamedTuple):
    """The final test is done.

    **Arguments:** `experiment`; `assessment`, an `Assessment`.

    >>> Tested(None, Assessment([])).assessment.rows
    []
    """

    experiment: Experiment | Any
    assessment: Assessment


class Reported(NamedTuple):
    """The report is written.

    **Arguments:** `path` of `report.md`.

    >>> Reported(pathlib.Path("report.md")).path.suffix
    '.md'
    """

    path: pathlib.Path


RunEvent: TypeAlias = train.Event | Started | Testing | Tested | Reported
