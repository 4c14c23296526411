"""The Meta-Learner LSTM: an LSTM, shared by all coordinates, is the optimiser of the inner loop."""

from ._functions import (
    Diagnostics as Diagnostics,
    adapt as adapt,
    diagnostics as diagnostics,
    meta_loss as meta_loss,
    predict as predict,
)
from ._learner import (
    Adapted as Adapted,
    MetaLSTM as MetaLSTM,
    with_batch_size as with_batch_size,
    with_num_steps as with_num_steps,
)
from ._preprocess import preprocess as preprocess
from ._update import Gate as Gate, LearnedUpdate as LearnedUpdate, UpdateState as UpdateState
