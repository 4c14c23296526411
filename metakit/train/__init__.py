"""Meta-training: one step, many steps in one compiled call, and a loop with validation and checkpoints."""

from ._acting import ActingAlgorithm as ActingAlgorithm
from ._checkpoint import Best as Best, Checkpoints as Checkpoints
from ._draw import draw_tasks as draw_tasks
from ._epochs import Epochs as Epochs, EpochsDetails as EpochsDetails
from ._errors import (
    CheckpointError as CheckpointError,
    CheckpointVersionError as CheckpointVersionError,
    ConfigChangedError as ConfigChangedError,
    DiskFullError as DiskFullError,
    NonFiniteLossError as NonFiniteLossError,
)
from ._events import (
    Event as Event,
    Interrupted as Interrupted,
    Progress as Progress,
    Resumed as Resumed,
    Saved as Saved,
    Validated as Validated,
)
from ._fit import FitResult as FitResult, fit as fit
from ._optimisers import adam as adam
from ._state import TrainState as TrainState, init as init, with_learner as with_learner
from ._step import (
    StepDiagnostics as StepDiagnostics,
    run_steps as run_steps,
    step as step,
)
from ._trust_region import TrustRegion as TrustRegion, TrustRegionDetails as TrustRegionDetails
