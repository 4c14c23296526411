"""An experiment: everything that decides a result, as data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax

from metakit._algorithm import require_algorithm, require_sampler
from metakit._wording import describe
from metakit.train import step

from ._scores import AbstractScores, Series
from ._words import Words

Sampler = Callable[..., Any]


def as_it_is(learner: Any) -> Any:
    """A learner that is tested as it was trained."""
    return learner


@dataclasses.dataclass(frozen=True)
class Origin:
    """The recipe that made an experiment, so that another process can make it again.

    **Arguments:** `name`, as on the command line (`"maml"`, `"my_file.py:recipe"`); `options`, JSON values by name;
    `command`, which makes the same run; `digest`, the sha256 of a user's file, `None` for a recipe of metakit's.

    >>> Origin("maml", {"data": "glyphs"}).name
    'maml'
    """

    name: str
    options: Mapping[str, Any]
    command: str = ""
    digest: str | None = None


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What a run remembers of the data it was trained on: names and shapes, never the data.

    **Arguments:**

    - `classes`: for `"train"`, `"val"` and `"test"` the names of the classes.
    - `fingerprints`: for each of them the sha256 of its contents.
    - `shape`: of one example, such as `(channels, height, width)`.
    - `ink`: whether the pictures hold light ink on a dark ground, as Omniglot's and Glyphs' do.
    - `examples`: for each part how many examples its largest class has.
    - `seen`: further classes that the learner had been trained on before this run.

    >>> DataRecord({"test": ("a", "b")}, {"test": "00ff"}, (1, 28, 28)).classes["test"]
    ('a', 'b')
    """

    classes: Mapping[str, tuple[str, ...]]
    fingerprints: Mapping[str, str]
    shape: tuple[int, ...]
    ink: bool = False
    examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An algorithm, a learner at its start, tasks, and how long and by what it is judged.

    `mk.experiments.run` trains and tests it. Any algorithm, any learner and any sampler will do; nothing here is
    particular to a family.

    **Arguments:**

    - `algorithm`: a module such as `mk.maml`, one of your own, or a `MetaLearner`.
    - `learner`: its learner at the start.
    - `optimiser`: any optax transformation.
    - `train`, `test`: samplers `sampler(key) -> task` of tasks to train and to test on.
    - `scores`: what a task is scored by, such as `mk.experiments.accuracy()`.
    - `steps`: outer steps in all, at least 1.
    - `val`: a sampler of validation tasks. The learner with the best validation score is tested; without one (the
      default) the last is.
    - `meta_batch`: tasks in one outer step; default 8.
    - `validate_every`: outer steps between validations, a divisor of `steps`. `None` (the default) validates after the
      last step only.
    - `validation_tasks`, `test_tasks`: how many tasks, at least 2; defaults 200 and 600.
    - `seed`: of every random draw of training, validation and test; default 0.
    - `devices`: devices to spread the tasks over, a divisor of `meta_batch`; default 1.
    - `chunk`, `rule`, `anneal`: as in `mk.train.fit`.
    - `as_tested`: a function from the learner to the one that is validated and tested; default as it is.
    - `tested`: `"best"` (the default) by validation, or the `"last"`.
    - `untrained`: a name and a learner for the comparison with one that was not meta-trained. By default the learner at
      its start, `as_tested`.
    - `baselines`: (algorithm, learner) by name, tested on the same tasks. `None` (the default) takes those that fit:
      for classes the nearest neighbour, for images gradient histograms with logistic regression too.
    - `series`: functions `series(algorithm, learner, sampler, key, num_tasks=...)` that return a list of `Series`,
      such as the score after each inner step.
    - `pictures`: functions of `mk.experiments.Shown` that draw test tasks. `None` (the default) takes those that fit.
    - `words`: how a report speaks of it; see `mk.experiments.Words`.
    - `data`: what a run remembers of the data; a recipe fills it in.
    - `origin`: the recipe that made it; a recipe fills it in.
    - `start_from`: the run folder whose learner this one starts from; `mk.recipes.start_from` fills it in.

    **Raises:** `ValueError` for a count that is too small or does not divide; `TypeError` for what is no algorithm, no
    sampler or no scores.

    >>> import jax, optax, metakit as mk
    >>> lines = mk.tasks.LinearRegression(shot=5, queries=5)
    >>> network = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(network, inner=mk.inner.SGD(0.01), num_steps=1, loss=mk.losses.squared_error)
    >>> error = mk.experiments.mean_squared_error()
    >>> experiment = mk.Experiment(mk.maml, learner, optax.adam(1e-3), lines, lines, error, steps=100)
    >>> experiment.meta_batch
    8
    """

    algorithm: Any
    learner: Any
    optimiser: optax.GradientTransformation
    train: Sampler
    test: Sampler
    scores: AbstractScores
    steps: int
    _: dataclasses.KW_ONLY
    val: Sampler | None = None
    meta_batch: int = 8
    validate_every: int | None = None
    validation_tasks: int = 200
    test_tasks: int = 600
    seed: int = 0
    devices: int = 1
    chunk: int | Literal["auto"] | None = "auto"
    rule: Callable[..., Any] = step
    anneal: Callable[[Any, Any], Any] | None = None
    as_tested: Callable[[Any], Any] = as_it_is
    tested: Literal["best", "last"] = "best"
    untrained: tuple[str, Any] | None = None
    baselines: Mapping[str, tuple[Any, Any]] | None = None
    series: tuple[Callable[..., list[Series]], ...] = ()
    pictures: tuple[Callable[..., list[tuple[str, str]]], ...] | None = None
    words: Words = dataclasses.field(default_factory=Words)
    data: DataRecord | None = None
    origin: Origin | None = None
    start_from: str | None = None

    def __post_init__(self):
        require_algorithm(self.algorithm)
        for sampler in (self.train, self.test, self.val):
            require_sampler(sampler)
        if not isinstance(self.scores, AbstractScores):
            raise TypeError(
                f"scores must be what a task is scored by, got {describe(self.scores)}. Use "
                "mk.experiments.accuracy(), mean_squared_error(), log_density(), or metric(name, function, best=...)."
            )
        least = {"steps": 1, "meta_batch": 1, "validation_tasks": 2, "test_tasks": 2, "seed": 0, "devices": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}.")
        if self.validate_every is not None and (self.validate_every < 1 or self.steps % self.validate_every):
            raise ValueError(
                f"validate_every={self.validate_every} must divide steps={self.steps}, so that the last step is "
                "validated too."
            )
        if self.meta_batch % self.devices:
            raise ValueError(f"meta_batch={self.meta_batch} must be a multiple of devices={self.devices}.")
