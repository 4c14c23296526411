"""Reptile: move the initialisation towards the weights that training on each task ends at."""

from ._functions import (
    Diagnostics as Diagnostics,
    adapt as adapt,
    diagnostics as diagnostics,
    meta_loss as meta_loss,
    predict as predict,
)
from ._learner import (
    Adapted as Adapted,
    Reptile as Reptile,
    with_batch_size as with_batch_size,
    with_carried_state as with_carried_state,
    with_num_steps as with_num_steps,
)
