"""Algorithms made of algorithms: an ensemble of learners, a temperature on what a learner says."""

from ._ensemble import Ensemble as Ensemble, ensemble as ensemble
from ._tempered import Tempered as Tempered, tempered as tempered
