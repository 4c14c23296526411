"""The core of the public interface: everything that `import metakit` offers once it is asked for."""

from . import (
    bilevel as bilevel,
    evaluate as evaluate,
    inner as inner,
    losses as losses,
    metrics as metrics,
    nn as nn,
    random as random,
    rl as rl,
    sharding as sharding,
    tasks as tasks,
    train as train,
)
from ._algorithm import Algorithm as Algorithm, MetaLearner as MetaLearner
from ._compile import compiler_options as compiler_options
from ._environment import (
    AbstractEnvironment as AbstractEnvironment,
    Continuous as Continuous,
    Discrete as Discrete,
    Transition as Transition,
)
from ._episode import (
    Episode as Episode,
    Examples as Examples,
    MaskedExamples as MaskedExamples,
    check_values as check_values,
)
from ._hyperparameter import (
    Hyperparameter as Hyperparameter,
    fixed as fixed,
    held as held,
    learned as learned,
    trainable as trainable,
)
from ._normal import Normal as Normal
from .bilevel import (
    Bilevel as Bilevel,
    Hypergradient as Hypergradient,
    HypergradientReport as HypergradientReport,
    HypergradientRow as HypergradientRow,
    RealTime as RealTime,
    check_hypergradient as check_hypergradient,
    choose_adjoint as choose_adjoint,
    hypergradient as hypergradient,
    real_time_hypergradient as real_time_hypergradient,
    start_real_time as start_real_time,
)
from .combinators import (
    Ensemble as Ensemble,
    Tempered as Tempered,
    ensemble as ensemble,
    tempered as tempered,
)
from .learners import (
    maml as maml,
    mann as mann,
    matching as matching,
    meta_lstm as meta_lstm,
    metagan as metagan,
    neural_process as neural_process,
    prototypical as prototypical,
    relation as relation,
    reptile as reptile,
    ridge as ridge,
    rl_maml as rl_maml,
    rl_squared as rl_squared,
    snail as snail,
    statistician as statistician,
    versa as versa,
)
