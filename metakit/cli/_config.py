"""The options of the command line, and the settings that they and a preset make together."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import tyro

from ._devices import every_core

EVERY_CORE = "every core"  # the devices of a preset
IMAGES = ("glyphs", "omniglot", "folder")
LINES = ("sinusoid", "linear")
REGRESSION = (*LINES, "gp")
ENVIRONMENTS = ("bandits", "navigation")
DATA = (*IMAGES, *REGRESSION, *ENVIRONMENTS)
Split = Literal["vinyals", "lake", "seeded"]
Schedule = Literal["constant", "cosine", "halving", "cooldown"]
NormPolicy = Literal["transductive", "joint", "inductive", "one_by_one"]


class UsageError(ValueError):
    """Options that do not fit together; shown without a traceback, exit status 2."""


def _left_out(metavar: str) -> object:
    """An option that a preset, or the run, has a value for."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def _one_of(choices: Any) -> object:
    return _left_out("|".join(get_args(choices)))


Whole = Annotated[int | None, _left_out("INT")]
Number = Annotated[float | None, _left_out("FLOAT")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # a run that continues has it, or has it not
Path = Annotated[pathlib.Path | None, _left_out("PATH")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Meta-train an algorithm, evaluate it on unseen classes, and write a report.

    Options left out come from the preset of the algorithm and the data (`metakit list` shows them)."""

    algorithm: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALGORITHM")]
    """One of those that 'metakit list' shows."""
    data: Annotated[str | None, _left_out("|".join(DATA))] = None
    """What to train on; by default the first that the algorithm takes. All but omniglot and folder are built in."""
    path: Path = None
    """Folder of Omniglot's two archives, or of your own images (one sub-folder a class)."""
    download: bool = False
    """Fetch Omniglot's archives into --path (or the cache) if they are not there."""
    split: Annotated[Split | None, _one_of(Split)] = None
    """Omniglot's split: vinyals, lake or seeded."""
    trainval: Flag = False
    """Omniglot: train on the validation classes too, as many published models do; the last learner is then tested."""
    mirrored: Flag = False
    """Train on the mirror image of each class as a class of its own too."""
    start_from: Path = None
    """Run folder whose learner to start from; another --seed draws other tasks."""
    way: Whole = None
    """Classes in a training episode."""
    shot: Whole = None
    """Support examples of each class (for regression: in all; for sequences: images of each class)."""
    queries: Whole = None
    """Query examples of each class in training (for regression: in all)."""
    test_way: Whole = None
    """Classes in a test episode; learners whose network has an output for each class need the training way."""
    test_shot: Whole = None
    """Support examples of each class in a test episode; by default as in training."""
    test_queries: Whole = None
    """Query examples of each class in a test episode."""
    steps: Whole = None
    """Outer steps in all."""
    meta_batch: Whole = None
    """Tasks in one outer step."""
    rate: Number = None
    """Outer rate (of Adam; Reptile's is the part of the way to the tasks' solutions that a step goes)."""
    schedule: Annotated[Schedule | None, _one_of(Schedule)] = None
    """How the outer rate falls."""
    clip_norm: Number = None
    """Largest Euclidean norm of a meta-gradient."""
    inner_rate: Number = None
    """Inner rate, of the mean support loss (learners with an inner loop); of meta-lstm, where its input gate starts."""
    inner_steps: Whole = None
    """Inner steps in training."""
    test_inner_steps: Whole = None
    """Inner steps in evaluation."""
    inner_batch: Whole = None
    """Support examples in an inner step (Reptile)."""
    norm_policy: Annotated[NormPolicy | None, _one_of(NormPolicy)] = None
    """Whose statistics batch norm uses for the query set; the docs say which algorithm has which."""
    scale: Number = None
    """Factor of the similarities before the softmax (metric learners)."""
    validate_every: Whole = None
    """Outer steps between validations, a divisor of --steps; by default near the preset's."""
    validation_tasks: Whole = None
    """Tasks in a validation."""
    test_tasks: Whole = None
    """Tasks in the final test."""
    seed: Whole = None
    """Seed of every random draw."""
    devices: Whole = None
    """Devices to spread the tasks over; a CPU counts as so many. By default every core, where that is faster
    (gradient-based learners on images), and otherwise one."""
    run: Path = None
    """Run folder to make; by default runs/ALGORITHM-DATA-TIME."""
    resume: Path = None
    """Run folder to continue."""
    smoke: bool = False
    """A few steps only: checks that everything works, learns nothing."""
    compilation_cache: bool = True
    """Keep compiled programs for the next run."""
    traceback: bool = False
    """Show the whole traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate the learner of a run on its test tasks, or on others."""

    run: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    way: Whole = None
    """Classes in an episode; learners whose network has an output for each class need the training way."""
    shot: Whole = None
    """Support examples of each class (for regression: in all; for sequences: images of each class)."""
    queries: Whole = None
    """Query examples of each class (for regression: in all)."""
    inner_steps: Whole = None
    """Inner steps (learners with an inner loop)."""
    norm_policy: Annotated[NormPolicy | None, _one_of(NormPolicy)] = None
    """Whose statistics batch norm uses for the query set, if others than in training."""
    num_tasks: Whole = None
    """How many tasks."""
    path: Path = None
    """Where the data is, if it has moved."""
    seed: int = 1
    """Seed of the test tasks."""
    compilation_cache: bool = True
    """Keep compiled programs for the next run."""
    traceback: bool = False
    """Show the whole traceback of an error."""


@dataclasses.dataclass(frozen=True)
class List:
    """Show the algorithms and their presets."""

    traceback: bool = False
    """Show the whole traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run; recorded in its folder."""

    algorithm: str
    data: str
    path: str | None
    split: Split | None
    trainval: bool
    mirrored: bool
    start_from: str | None
    way: int
    shot: int
    queries: int
    test_way: int
    test_shot: int
    test_queries: int
    steps: int
    meta_batch: int
    rate: float
    schedule: str
    clip_norm: float | None
    inner_rate: float
    inner_steps: int
    test_inner_steps: int
    inner_batch: int
    norm_policy: str
    scale: float
    validate_every: int
    validation_tasks: int
    test_tasks: int
    seed: int
    devices: int
    smoke: bool

    @property
    def regression(self) -> bool:
        return self.data in REGRESSION

    @property
    def has_classes(self) -> bool:
        return self.data in IMAGES


_CHOSEN = tuple(
    field.name for field in dataclasses.fields(Settings) if field.name not in ("algorithm", "data", "smoke")
)


def explicit(options: Train) -> dict[str, object]:
    """The settings that were given on the command line."""
    given = {name: getattr(options, name) for name in _CHOSEN}
    return {
        name: str(value) if isinstance(value, pathlib.Path) else value
        for name, value in given.items()
        if value is not None and value is not False
    }


def settings(options: Train, data: str, preset: dict[str, object]) -> Settings:
    """The preset, overridden by what was given; what neither says follows from the training episodes."""
    nothing = {"path": None, "split": None, "trainval": False, "mirrored": False, "start_from": None, "clip_norm": None}
    values = {**nothing, **preset, **explicit(options)}
    values.setdefault("test_way", values["way"])
    values.setdefault("test_shot", values["shot"])
    values.setdefault("test_queries", values["queries"])
    values.setdefault("test_inner_steps", values["inner_steps"])
    if options.smoke:
        values |= {"steps": 4, "validate_every": 2, "validation_tasks": 8, "test_tasks": 20, "meta_batch": 2}
        values |= explicit(options)
        if options.validate_every is None:
            values["validate_every"] = max(int(values["steps"]) // 2, 1)  # type: ignore[call-overload]
    check_numbers({"data": data, **values})
    if options.validate_every is None:
        values["validate_every"] = _divisor_near(int(values["validate_every"]), int(values["steps"]))  # type: ignore[call-overload]
    if values["devices"] == EVERY_CORE:
        values["devices"] = every_core(int(values["meta_batch"]))  # type: ignore[call-overload]
    chosen = Settings(algorithm=options.algorithm, data=data, smoke=options.smoke, **values)  # type: ignore[arg-type]
    _check_divisions(chosen, given=options.validate_every is not None)
    return chosen


def _divisor_near(wanted: int, steps: int) -> int:
    """A preset's period for other steps than the preset's: the nearest that divides them, within a factor of three.

    Where there is none, the preset's own, which is then refused."""
    if steps <= wanted:
        return steps
    near = [period for period in range(-(-wanted // 3), 3 * wanted + 1) if steps % period == 0]
    return min(near, key=lambda period: abs(math.log(period / wanted)), default=wanted)


# The least value of each number; an interval needs two tasks.
_LEAST = {
    "way": 1,
    "shot": 1,
    "queries": 1,
    "test_way": 1,
    "test_shot": 1,
    "test_queries": 1,
    "steps": 1,
    "meta_batch": 1,
    "inner_steps": 0,
    "test_inner_steps": 0,
    "inner_batch": 1,
    "validate_every": 1,
    "validation_tasks": 2,
    "test_tasks": 2,
    "devices": 1,
    "seed": 0,
}
_POSITIVE = ("rate", "inner_rate", "scale", "clip_norm")


def option(name: str) -> str:
    """A setting as it is written on the command line."""
    return "--" + name.replace("_", "-")


def check_numbers(values: Mapping[str, Any], *, names: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse a number out of range; `names` are the options by settings where they differ."""
    for name, least in _LEAST.items():
        value = values[name]
        if value != EVERY_CORE and value < least:
            raise UsageError(f"{option(names.get(name, name))} must be at least {least}, got {value}.")
    for name in ("way", "test_way"):
        if values["data"] in IMAGES and values[name] < 2:
            raise UsageError(
                f"{option(names.get(name, name))} must be at least 2, got {values[name]}: of one class every answer is "
                "right."
            )
    for name in _POSITIVE:
        value = values[name]
        if value is not None and not value > 0:
            raise UsageError(f"{option(names.get(name, name))} must be above 0, got {value}.")


def _check_divisions(chosen: Settings, *, given: bool) -> None:
    steps, period = chosen.steps, chosen.validate_every
    if steps % period:
        whose = "" if given else ", the preset,"
        raise UsageError(
            f"--validate-every {period}{whose} must divide --steps {steps}, so that the last step is validated too; "
            f"--steps {period * max(round(steps / period), 1)} would do."
        )
    if chosen.meta_batch % chosen.devices:
        raise UsageError(f"--meta-batch {chosen.meta_batch} must be a multiple of --devices {chosen.devices}.")
