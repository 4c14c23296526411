"""SNAIL: the support set and a query are one sequence, read by causal convolutions and causal attention."""

from ._functions import Adapted as Adapted, adapt as adapt, meta_loss as meta_loss, predict as predict
from ._learner import SNAIL as SNAIL, few_shot as few_shot, few_shot_trunk as few_shot_trunk
