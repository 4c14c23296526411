"""What each algorithm starts from on each data set: every number of a preset stands in this file."""

from collections.abc import Collection
from typing import TypeAlias

from metakit._errors import nearest

from ._algorithms import entry
from ._config import DATA, ENVIRONMENTS, EVERY_CORE, IMAGES, REGRESSION, Settings, UsageError, option
from ._entry import OPTIONAL

Preset: TypeAlias = dict[str, object]

# What an algorithm has no use for still has a value, which `check_given` keeps anybody from giving.
_UNUSED: Preset = {
    "scale": 1.0,
    "schedule": "constant",
    "inner_rate": 1.0,
    "inner_steps": 0,
    "inner_batch": 1,
    "queries": 1,
    "norm_policy": "transductive",
}

# Images. Glyphs are made for minutes, so these schedules are short.
_IMAGES: Preset = _UNUSED | {
    "way": 5,
    "shot": 1,
    "queries": 3,
    "test_queries": 5,
    "rate": 2e-3,
    "schedule": "cosine",
    "validation_tasks": 200,
    "test_tasks": 600,
    "seed": 0,
    "devices": 1,
}
_GRADIENT: Preset = _IMAGES | {
    "devices": EVERY_CORE,
    "steps": 1200,
    "meta_batch": 8,
    "inner_steps": 1,
    "test_inner_steps": 3,
    "validate_every": 300,
}
_METRIC: Preset = _IMAGES | {
    "way": 20,
    "test_way": 5,
    "steps": 300,
    "meta_batch": 1,
    "norm_policy": "joint",
    "validate_every": 100,
}
# Its network has an output for each class, so the test's way follows the training's.
_SNAIL: Preset = {name: value for name, value in _METRIC.items() if name != "test_way"} | {
    "way": 5,
    "meta_batch": 8,
    "rate": 1e-3,
}
_REPTILE: Preset = _GRADIENT | {
    "shot": 10,
    "test_shot": 1,
    "queries": 1,
    "rate": 1.0,
    "schedule": "constant",
    "inner_rate": 3e-3,
    "inner_steps": 5,
    "test_inner_steps": 50,
    "inner_batch": 10,
    "norm_policy": "inductive",
}
_META_LSTM: Preset = _GRADIENT | {
    "meta_batch": 4,
    "queries": 5,
    "clip_norm": 0.25,
    "inner_rate": 0.5,
    "inner_steps": 2,
    "test_inner_steps": 2,
}
_MANN: Preset = _IMAGES | {
    "shot": 10,
    "queries": 1,
    "test_queries": 1,
    "steps": 2000,
    "meta_batch": 16,
    "rate": 1e-3,
    "schedule": "constant",
    "validate_every": 500,
}
_STATISTICIAN: Preset = _IMAGES | {  # sets of 5
    "way": 16,
    "test_way": 5,
    "queries": 4,
    "steps": 500,
    "meta_batch": 1,
    "validate_every": 100,
}
_ON_IMAGES: dict[str, Preset] = {
    "maml": _GRADIENT,
    "fomaml": _GRADIENT,
    "anil": _GRADIENT,
    "boil": _GRADIENT,
    "meta-sgd": _GRADIENT | {"test_inner_steps": 1},
    "mamlpp": _GRADIENT | {"inner_steps": 3, "inner_rate": 0.5},
    "reptile": _REPTILE,
    "meta-lstm": _META_LSTM,
    "matching": _METRIC | {"scale": 10.0},
    "prototypical": _METRIC,
    "relation": _METRIC | {"norm_policy": "transductive"},
    "r2d2": _METRIC | {"scale": 10.0},
    "lrd2": _METRIC | {"scale": 10.0},
    "versa": _METRIC | {"norm_policy": "transductive"},
    "metagan": _METRIC,
    "metagan-maml": _GRADIENT,
    "snail": _SNAIL,
    "mann": _MANN,
    "statistician": _STATISTICIAN,
}

# Omniglot: what differs from the rows above. Where a published schedule does not fit an hour it is shortened, and
# docs/results.md says by how much.
_OMNIGLOT: Preset = {"split": "vinyals", "test_tasks": 1000, "validation_tasks": 300}
_GRADIENT_OMNIGLOT: Preset = {
    "steps": 70_000,
    "rate": 1.5e-3,
    "queries": 1,
    "test_queries": 1,
    "inner_rate": 2.0,
    "validate_every": 7000,
}
_METRIC_OMNIGLOT: Preset = {"queries": 5, "test_queries": 15, "steps": 5000, "validate_every": 1000}
_LONGER_OMNIGLOT: Preset = _METRIC_OMNIGLOT | {"steps": 10_000, "validate_every": 2000}
_ON_OMNIGLOT: dict[str, Preset] = {
    "maml": _GRADIENT_OMNIGLOT,
    "fomaml": _GRADIENT_OMNIGLOT,
    "anil": _GRADIENT_OMNIGLOT,
    "boil": _GRADIENT_OMNIGLOT,
    "meta-sgd": _GRADIENT_OMNIGLOT,
    "mamlpp": _GRADIENT_OMNIGLOT | {"inner_rate": 0.5},
    "matching": _METRIC_OMNIGLOT,
    "prototypical": _METRIC_OMNIGLOT | {"way": 60},
    "relation": _METRIC_OMNIGLOT,
    "r2d2": _LONGER_OMNIGLOT,
    "lrd2": _LONGER_OMNIGLOT,
    "versa": _LONGER_OMNIGLOT | {"rate": 1e-3, "steps": 8000},
    "metagan": _METRIC_OMNIGLOT | {"steps": 4000},
    "metagan-maml": _GRADIENT_OMNIGLOT | {"steps": 20_000, "validate_every": 2000},
    "snail": _METRIC_OMNIGLOT | {"steps": 20_000, "validate_every": 2000},
    "reptile": {"test_queries": 15, "meta_batch": 4, "steps": 40_000, "validate_every": 4000},
    "meta-lstm": {"test_queries": 15, "steps": 20_000, "validate_every": 2000},
    "mann": {"steps": 60_000, "schedule": "cooldown", "validate_every": 2000},
    "statistician": {"test_queries": 15, "steps": 150_000, "validate_every": 15_000},
}

# Curves.
_CURVES: Preset = _UNUSED | {
    "way": 1,
    "shot": 10,
    "queries": 10,
    "steps": 15_000,
    "meta_batch": 25,
    "rate": 1e-3,
    "inner_rate": 0.01,
    "inner_steps": 1,
    "test_inner_steps": 10,
    "validate_every": 1500,
    "validation_tasks": 1000,
    "test_tasks": 4000,
    "seed": 0,
    "devices": 1,
}
_GP: Preset = _CURVES | {
    "shot": 9,
    "queries": 9,
    "steps": 20_000,
    "meta_batch": 64,
    "schedule": "cosine",
    "inner_steps": 0,
    "test_inner_steps": 0,
    "validate_every": 2000,
    "test_tasks": 2000,
}
_ON_CURVES: dict[str, Preset] = {
    "mamlpp": {"inner_steps": 5, "test_inner_steps": 5},
    "matching": {"inner_steps": 0, "test_inner_steps": 0, "scale": 10.0},
}

# Environments. An environment has no examples to count, and a policy's network no batch norm.
_ENVIRONMENT: Preset = _UNUSED | {"way": 1, "shot": 1, "rate": 1.0, "seed": 0, "devices": 1}
_IN_ENVIRONMENTS: dict[str, Preset] = {
    "bandits": _ENVIRONMENT
    | {
        "steps": 1000,
        "meta_batch": 256,
        "rate": 1e-2,
        "schedule": "cosine",
        "clip_norm": 1.0,
        "validate_every": 250,
        "validation_tasks": 2000,
        "test_tasks": 20_000,
    },
    "navigation": _ENVIRONMENT
    | {
        "steps": 100,
        "meta_batch": 20,
        "inner_rate": 0.5,
        "inner_steps": 1,
        "test_inner_steps": 3,
        "validate_every": 10,
        "validation_tasks": 40,
        "test_tasks": 400,
    },
}


def default_data(algorithm: str) -> str:
    """What an algorithm trains on where nothing is said."""
    return entry(algorithm).data[0]


def preset(algorithm: str, data: str) -> Preset:
    """What the settings of an algorithm on a data set start from."""
    known = entry(algorithm)
    if data not in DATA:
        raise UsageError(f"--data {data!r} is not known. {nearest(data, DATA)}")
    if data not in known.data:
        *others, last = known.data
        takes = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{algorithm} has no preset for --data {data}. It trains on {takes}.")
    if data in ENVIRONMENTS:
        return _IN_ENVIRONMENTS[data]
    if data == "gp":
        return _GP
    if data in REGRESSION:
        return _CURVES | _ON_CURVES.get(algorithm, {})
    return _ON_IMAGES[algorithm] | (_OMNIGLOT | _ON_OMNIGLOT.get(algorithm, {}) if data == "omniglot" else {})


# Settings that not all data has.
_OF_CLASSES = ("way", "test_way")
_OF_EXAMPLES = ("shot", "test_shot", "queries", "test_queries")


def unused_options(algorithm: str, data: str) -> dict[str, str]:
    """The settings that a run would not use, and why not."""
    uses = entry(algorithm).uses
    unused = {name: f"{algorithm} {why}" for name, why in OPTIONAL.items() if name not in uses}
    if data not in IMAGES:
        unused |= dict.fromkeys(_OF_CLASSES, f"--data {data} has no classes")
        unused["mirrored"] = f"--data {data} has no images"
        unused["norm_policy"] = f"the network for --data {data} has no batch norm"
    if data in ENVIRONMENTS:
        unused |= dict.fromkeys(_OF_EXAMPLES, f"--data {data} is learned from by acting, not from examples")
    if data not in ("omniglot", "folder"):
        unused["path"] = f"--data {data} is built in"
    if data != "omniglot":
        unused["split"] = f"--data {data} has its own split"
        unused["trainval"] = "only Omniglot is published with a training set that has the classes of validation"
    return unused


def check_given(given: Collection[str], settings: Settings) -> None:
    """Refuse what contradicts itself before anything is loaded or written."""
    known = entry(settings.algorithm)
    for name, why in unused_options(settings.algorithm, settings.data).items():
        if name in given:
            raise UsageError(f"{option(name)} would not be used: {why}. Leave it out.")
    if known.fixed_way and settings.has_classes and settings.test_way != settings.way:
        raise UsageError(
            f"--test-way {settings.test_way}: {settings.algorithm} has a head for {settings.way} classes and can be "
            "tested on no other number. Leave it out, or change --way."
        )
