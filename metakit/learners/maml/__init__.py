"""MAML and its relatives: a few gradient steps from a learned initialisation."""

from ._configurations import (
    anil as anil,
    boil as boil,
    fomaml as fomaml,
    imaml as imaml,
    mamlpp as mamlpp,
    meta_sgd as meta_sgd,
)
from ._functions import (
    Diagnostics as Diagnostics,
    adapt as adapt,
    choose_adjoint as choose_adjoint,
    diagnostics as diagnostics,
    meta_loss as meta_loss,
    path as path,
    predict as predict,
)
from ._learner import (
    MAML as MAML,
    Adapted as Adapted,
    with_adjoint as with_adjoint,
    with_num_steps as with_num_steps,
    with_step_weights as with_step_weights,
)
from ._multi_step import multi_step_weights as multi_step_weights
