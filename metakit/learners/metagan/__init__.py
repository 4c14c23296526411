"""MetaGAN: a few-shot classifier that also learns to tell generated examples from real ones."""

from ._functions import (
    Diagnostics as Diagnostics,
    adapt as adapt,
    diagnostics as diagnostics,
    generate as generate,
    meta_loss as meta_loss,
    predict as predict,
)
from ._learner import (
    Adapted as Adapted,
    MetaGAN as MetaGAN,
    players as players,
    without_generator as without_generator,
)
from ._loss import DiscriminatorLoss as DiscriminatorLoss, real_and_fake as real_and_fake
