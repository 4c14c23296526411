"""What `fit` tells whoever listens: a display, a log, a test."""

from typing import Any, NamedTuple, TypeAlias


class Resumed(NamedTuple):
    """A checkpoint was found, and the run continues from it.

    **Arguments:** `step`, how many steps had been taken.

    >>> Resumed(step=500).step
    500
    """

    step: int


class Progress(NamedTuple):
    """Some steps were taken.

    **Arguments:**

    - `step`: how many steps have been taken in all.
    - `loss`: the mean meta-loss over the steps since the event before.
    - `gradient_norm`: the mean norm of their meta-gradients.
    - `steps_per_second`: of this dispatch; the first includes compilation.
    - `seconds_left`: an estimate for the steps that remain, without the first dispatch once there are others.

    >>> Progress(step=10, loss=0.5, gradient_norm=1.0, steps_per_second=5.0, seconds_left=18.0).loss
    0.5
    """

    step: int
    loss: float
    gradient_norm: float
    steps_per_second: float
    seconds_left: float


class Validated(NamedTuple):
    """The learner was validated.

    **Arguments:**

    - `step`: how many steps it had been trained for.
    - `result`: what `validate` returned.
    - `score`: the number in it by which the best is chosen.
    - `is_best`: whether it is the best so far.

    >>> Validated(step=10, result=0.9, score=0.9, is_best=True).is_best
    True
    """

    step: int
    result: Any
    score: float
    is_best: bool


class Saved(NamedTuple):
    """A checkpoint was written.

    **Arguments:** `step`, how many steps the saved state has taken.

    >>> Saved(step=10).step
    10
    """

    step: int


class Interrupted(NamedTuple):
    """Ctrl-C was pressed: the dispatch was finished and saved, and `fit` returns.

    **Arguments:** `step`, how many steps have been taken.

    >>> Interrupted(step=10).step
    10
    """

    step: int


Event: TypeAlias = Resumed | Progress | Validated | Saved | Interrupted
