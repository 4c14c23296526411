"""Bilevel problems: an outer loss of what an inner loop ends at, and its gradient. Knows no learner."""

from ._check import (
    HypergradientReport as HypergradientReport,
    HypergradientRow as HypergradientRow,
    check_hypergradient as check_hypergradient,
)
from ._hypergradient import (
    Hypergradient as Hypergradient,
    choose_adjoint as choose_adjoint,
    hypergradient as hypergradient,
)
from ._problem import Bilevel as Bilevel
from ._real_time import (
    RealTime as RealTime,
    real_time_hypergradient as real_time_hypergradient,
    start_real_time as start_real_time,
)
