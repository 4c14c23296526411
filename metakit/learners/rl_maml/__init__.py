"""MAML on policy gradients: a policy that a few gradient steps on its own episodes make good at a new task."""

from ._functions import (
    Adapted as Adapted,
    Diagnostics as Diagnostics,
    Experience as Experience,
    adapt as adapt,
    collect as collect,
    diagnostics as diagnostics,
    divergence as divergence,
    meta_loss as meta_loss,
    predict as predict,
    returns as returns,
)
from ._learner import RLMAML as RLMAML, with_num_steps as with_num_steps
