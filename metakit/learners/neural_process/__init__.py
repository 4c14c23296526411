"""Neural processes: a network reads a distribution over functions off a set of points.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `NeuralProcess`. With a latent path, the
last two draw random numbers and need a key.
"""

from ._attention import Attention as Attention
from ._functions import (
    Adapted as Adapted,
    Diagnostics as Diagnostics,
    adapt as adapt,
    diagnostics as diagnostics,
    meta_loss as meta_loss,
    predict as predict,
)
from ._latent import LatentPath as LatentPath
from ._learner import NeuralProcess as NeuralProcess
