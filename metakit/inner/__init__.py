"""The inner loop: update rules, ways to differentiate through them, and which leaves adapt."""

from . import select as select
from ._adjoint import (
    AbstractAdjoint as AbstractAdjoint,
    Solution as Solution,
    check_steps as check_steps,
)
from ._auto import Auto as Auto, Choice as Choice, choose_adjoint as choose_adjoint
from ._checkpointed import Checkpointed as Checkpointed
from ._curvature import MetaCurvature as MetaCurvature
from ._descend import Problem as Problem, descend as descend, problem as problem
from ._first_order import FirstOrder as FirstOrder
from ._forward import Forward as Forward
from ._implicit import Implicit as Implicit
from ._mixed_mode import MixedMode as MixedMode
from ._momentum import (
    AbstractMomentum as AbstractMomentum,
    Momentum as Momentum,
    PerLayerPerStepMomentum as PerLayerPerStepMomentum,
)
from ._neumann import Neumann as Neumann
from ._optax import Optax as Optax
from ._rates import PerLayerPerStepSGD as PerLayerPerStepSGD, PerParameterSGD as PerParameterSGD
from ._reversible import Reversible as Reversible
from ._solver import SGD as SGD, AbstractSolver as AbstractSolver
from ._truncated import Truncated as Truncated
from ._unrolled import Unrolled as Unrolled
