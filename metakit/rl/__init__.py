"""Reinforcement learning as pure functions: policies, rollouts, advantages and surrogate losses."""

from ._advantages import discounted_returns as discounted_returns, gae as gae, standardise as standardise
from ._baseline import baseline_features as baseline_features, linear_baseline as linear_baseline
from ._distributions import (
    AbstractDistribution as AbstractDistribution,
    Categorical as Categorical,
    DiagonalGaussian as DiagonalGaussian,
)
from ._policies import (
    CategoricalPolicy as CategoricalPolicy,
    GaussianPolicy as GaussianPolicy,
    distributions as distributions,
)
from ._recurrent import (
    AbstractRecurrentPolicy as AbstractRecurrentPolicy,
    Token as Token,
    read_trial as read_trial,
    tokens as tokens,
)
from ._rollout import rollout as rollout, trial as trial
from ._surrogates import (
    SURROGATES as SURROGATES,
    Surrogate as Surrogate,
    clipped_surrogate as clipped_surrogate,
    policy_surrogate as policy_surrogate,
)
from ._trajectories import (
    Trajectories as Trajectories,
    as_data as as_data,
    check_actions as check_actions,
    masked_mean as masked_mean,
)
