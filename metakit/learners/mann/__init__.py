"""MANN: a recurrent controller writes what it sees to an external memory, and reads it back by likeness."""

from ._functions import (
    Adapted as Adapted,
    Diagnostics as Diagnostics,
    adapt as adapt,
    diagnostics as diagnostics,
    meta_loss as meta_loss,
    predict as predict,
)
from ._learner import MANN as MANN
from ._memory import State as State
