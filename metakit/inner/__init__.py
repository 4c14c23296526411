"""The inner loop: update rules, ways to differentiate through them, and which leaves adapt."""

from . import select as select
from ._adjoint import (
    AbstractAdjoint as AbstractAdjoint,
    Solution as Solution,
    check_steps as check_steps,
)
from ._checkpointed import Checkpointed as Checkpointed
from ._first_order import FirstOrder as FirstOrder
from ._mixed_mode import MixedMode as MixedMode
from ._optax import Optax as Optax
from ._rates import PerLayerPerStepSGD as PerLayerPerStepSGD, PerParameterSGD as PerParameterSGD
from ._solver import SGD as SGD, AbstractSolver as AbstractSolver, Momentum as Momentum
from ._unrolled import Unrolled as Unrolled
