"""Networks: modules that map one batch, and stay fast when every task has its own weights."""

from ._batched import Batched as Batched, batched as batched
from ._causal import (
    AbstractCausalLayer as AbstractCausalLayer,
    CausalSequence as CausalSequence,
    SequenceCache as SequenceCache,
    rewind as rewind,
)
from ._causal_attention import CausalAttention as CausalAttention
from ._conv1d import Conv1d as Conv1d
from ._conv2d import Conv2d as Conv2d
from ._conv4 import (
    Conv4 as Conv4,
    conv4_32 as conv4_32,
    conv4_64 as conv4_64,
    conv4_maml_omniglot as conv4_maml_omniglot,
    maml_norm as maml_norm,
)
from ._fourier import FourierFeatures as FourierFeatures
from ._freeze import freeze_statistics as freeze_statistics
from ._generator import ImageGenerator as ImageGenerator
from ._gru import GRU as GRU, GRUCell as GRUCell, SequenceModel as SequenceModel
from ._initialisers import (
    Initialiser as Initialiser,
    he_normal as he_normal,
    small_truncated_normal as small_truncated_normal,
    unit_normal as unit_normal,
    xavier_uniform as xavier_uniform,
    zeros as zeros,
)
from ._linear import MLP as MLP, Linear as Linear
from ._norm import (
    BatchStatNorm as BatchStatNorm,
    GroupNorm as GroupNorm,
    PerStepNorm as PerStepNorm,
    Statistics as Statistics,
    at_step as at_step,
)
from ._pool import max_pool2d as max_pool2d
from ._recurrent import AttLSTM as AttLSTM, BiLSTM as BiLSTM, LSTMCell as LSTMCell
from ._relation import RelationEmbedding as RelationEmbedding, RelationModule as RelationModule
from ._temporal import (
    CausalConv1d as CausalConv1d,
    CausalDense as CausalDense,
    TemporalConvolution as TemporalConvolution,
)
