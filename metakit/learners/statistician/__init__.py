"""The Neural Statistician: a variational autoencoder of sets, whose summary of a set classifies.

An algorithm: `adapt`, `predict` and `meta_loss` on one task, with the learner `Statistician`. The loss draws random
numbers and needs a key; adapting and predicting do not.
"""

from ._freeze import freeze_statistics as freeze_statistics
from ._functions import (
    Adapted as Adapted,
    Diagnostics as Diagnostics,
    adapt as adapt,
    diagnostics as diagnostics,
    meta_loss as meta_loss,
    predict as predict,
)
from ._images import ImageDecoder as ImageDecoder, ImageEncoder as ImageEncoder, of_images as of_images
from ._learner import (
    Statistician as Statistician,
    anneal_emphasis as anneal_emphasis,
    of_vectors as of_vectors,
)
