"""What the command line knows of an algorithm."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from metakit import train
from metakit._algorithm import Algorithm
from metakit.tasks import ImagePool

from ._config import IMAGES, Settings
from ._forms import EPISODES, AbstractForm
from ._optimisers import adam

# Options that not every algorithm has, and why one that lacks them would not use them.
OPTIONAL = {
    "queries": "asks for every image of a sequence",
    "test_queries": "asks for every image of a sequence",
    "norm_policy": "has no batch norm whose statistics could be chosen",
    "scale": "has no similarities to scale",
    "rate": "finds the length of each step by a line search",
    "schedule": "has a schedule of its own",
    "clip_norm": "follows no gradient that could be clipped",
    "inner_rate": "has no inner rate",
    "inner_steps": "has no inner loop",
    "test_inner_steps": "has no inner loop",
    "inner_batch": "draws no batches from the support set",
}
# Groups of them that algorithms share.
ADAM = ("rate", "schedule", "clip_norm")
EPISODE = ("queries", "test_queries", "norm_policy")
METRIC = (*ADAM, *EPISODE)
STEPS = ("inner_steps", "test_inner_steps")
GRADIENT = (*METRIC, *STEPS, "inner_rate")


def _nothing(settings: Settings) -> None:
    del settings


def _as_it_is(settings: Settings, learner: Any, pool: ImagePool | None) -> Any:
    del settings, pool
    return learner


@dataclasses.dataclass(frozen=True)
class Entry:
    """One algorithm.

    - `algorithm`: its namespace.
    - `build`: its learner at the start, from settings, the pool of training images (`None` for curves) and a key.
    - `about`: itself in a few words.
    - `uses`: those options of `OPTIONAL` that it has.
    - `norm`: what a report says of batch norm where `norm_policy` is no option.
    - `data`: what it learns from; the first is its default.
    - `images`: what images become for it.
    - `fixed_way`: whether its network is built for one number of classes.
    - `optimiser`: of the outer loop.
    - `rule`: makes what an outer step is, as in `mk.train.fit`. A function, so that importing this makes no array: JAX
      fixes the number of devices at the first.
    - `anneal`: a schedule of the learner's own numbers, as in `mk.train.fit`; mostly none.
    - `as_tested`: the learner as it is tested, where that differs; from settings, learner and training images.
    - `untrained`: how a learner that was not meta-trained does its best: what that is, and the learner.
    - `chunk`: how many tasks of a device run at once, as in `mk.train.fit`.
    - `reports_steps`: whether the test score after each inner step is reported, which takes `maml.path`.
    """

    algorithm: Algorithm
    build: Callable[[Settings, ImagePool | None, jax.Array], Any]
    about: str
    uses: tuple[str, ...] = METRIC
    norm: str = "none in this network"
    data: tuple[str, ...] = IMAGES
    images: AbstractForm = EPISODES
    fixed_way: bool = False
    optimiser: Callable[[Settings], optax.GradientTransformation] = adam
    rule: Callable[[], Callable[..., Any]] = lambda: train.step
    anneal: Callable[[Settings], Callable[[Any, Any], Any] | None] = _nothing
    as_tested: Callable[[Settings, Any, ImagePool | None], Any] = _as_it_is
    untrained: Callable[[Settings, Any], tuple[str, Any]] | None = None
    chunk: int | Literal["auto"] | None = "auto"
    reports_steps: bool = False
