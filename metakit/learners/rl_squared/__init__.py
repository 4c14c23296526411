"""RL^2: a recurrent policy whose memory, carried across the episodes of a trial, does the learning."""

from ._functions import (
    Adapted as Adapted,
    Diagnostics as Diagnostics,
    Trial as Trial,
    adapt as adapt,
    collect as collect,
    diagnostics as diagnostics,
    divergence as divergence,
    meta_loss as meta_loss,
    predict as predict,
)
from ._learner import RLSquared as RLSquared
from ._policy import RecurrentPolicy as RecurrentPolicy, gru_policy as gru_policy, token_size as token_size
