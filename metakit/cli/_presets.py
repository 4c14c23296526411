"""The algorithms that the command line knows, and what each data set starts from."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax

from metakit import losses, nn
from metakit._algorithm import Algorithm
from metakit._errors import nearest
from metakit._hyperparameter import learned
from metakit.inner import SGD
from metakit.learners import maml, matching, prototypical
from metakit.tasks import ImagePool

from ._config import DATA, EVERY_CORE, REGRESSION, Settings, UsageError, option


@dataclasses.dataclass(frozen=True)
class Entry:
    """One algorithm: its namespace, how its learner is built from settings, and what it can do."""

    algorithm: Algorithm
    build: Callable[[Settings, Any, Callable[..., Any]], Any]
    about: str
    gradient_based: bool
    regresses: bool


def _loss(settings: Settings) -> Callable[..., Any]:
    return losses.squared_error if settings.regression else losses.cross_entropy


def _by_rule(settings: Settings) -> dict[str, Any]:
    return {"inner": SGD(settings.inner_rate)}


def _by_rate(settings: Settings) -> dict[str, Any]:
    return {"rate": settings.inner_rate}


def _gradient_based(
    configure: Callable[..., Any], inner: Callable[[Settings], dict[str, Any]]
) -> Callable[[Settings, Any, Callable[..., Any]], Any]:
    """MAML or one of its configurations, whose inner loop takes an update rule, or learns its own rates."""

    def build(settings: Settings, network: Any, loss: Callable[..., Any]) -> Any:
        return configure(
            network,
            **inner(settings),
            num_steps=settings.inner_steps,
            loss=loss,
            norm_policy=settings.norm_policy,
        )

    return build


def _matching(settings: Settings, network: Any, loss: Callable[..., Any]) -> Any:
    return matching.Matching(network, scale=learned(settings.scale), loss=loss, norm_policy=settings.norm_policy)


def _prototypical(settings: Settings, network: Any, loss: Callable[..., Any]) -> Any:
    return prototypical.Prototypical(network, scale=settings.scale, loss=loss, norm_policy=settings.norm_policy)


ALGORITHMS = {
    "maml": Entry(maml, _gradient_based(maml.MAML, _by_rule), "MAML, second order (Finn et al. 2017)", True, True),
    "fomaml": Entry(maml, _gradient_based(maml.fomaml, _by_rule), "first-order MAML (Finn et al. 2017)", True, True),
    "anil": Entry(maml, _gradient_based(maml.anil, _by_rule), "only the head adapts (Raghu et al. 2020)", True, True),
    "boil": Entry(maml, _gradient_based(maml.boil, _by_rule), "only the body adapts (Oh et al. 2021)", True, True),
    "meta-sgd": Entry(
        maml, _gradient_based(maml.meta_sgd, _by_rate), "a learned rate per parameter (Li et al. 2017)", True, True
    ),
    "mamlpp": Entry(maml, _gradient_based(maml.mamlpp, _by_rate), "MAML++ (Antoniou et al. 2019)", True, True),
    "matching": Entry(matching, _matching, "Matching Networks (Vinyals et al. 2016)", False, True),
    "prototypical": Entry(prototypical, _prototypical, "Prototypical Networks (Snell et al. 2017)", False, False),
}

_IMAGES = {"way": 5, "shot": 1, "seed": 0, "scale": 1.0, "schedule": "cosine", "inner_rate": 1.0}
_GRADIENT = _IMAGES | {
    "devices": EVERY_CORE,
    "queries": 3,
    "test_queries": 5,
    "steps": 1200,
    "meta_batch": 8,
    "rate": 2e-3,
    "inner_steps": 1,
    "test_inner_steps": 3,
    "norm_policy": "transductive",
    "validate_every": 300,
    "validation_tasks": 200,
    "test_tasks": 600,
}
_METRIC = _IMAGES | {
    "devices": 1,
    "way": 20,
    "test_way": 5,
    "queries": 3,
    "test_queries": 5,
    "steps": 300,
    "meta_batch": 1,
    "rate": 2e-3,
    "inner_steps": 0,
    "norm_policy": "joint",
    "validate_every": 100,
    "validation_tasks": 200,
    "test_tasks": 600,
}
_OMNIGLOT = {"split": "vinyals", "test_tasks": 1000, "validation_tasks": 300}
_LINES = {
    "way": 1,
    "shot": 10,
    "queries": 10,
    "steps": 15_000,
    "meta_batch": 25,
    "rate": 1e-3,
    "schedule": "constant",
    "inner_rate": 0.01,
    "inner_steps": 1,
    "test_inner_steps": 10,
    "norm_policy": "transductive",
    "scale": 1.0,
    "validate_every": 1500,
    "validation_tasks": 1000,
    "test_tasks": 4000,
    "seed": 0,
    "devices": 1,
}
_METRIC_LINES = {"inner_steps": 0, "test_inner_steps": 0, "scale": 10.0}

# What differs from the rows above, by algorithm on images, and by (algorithm, data); every number of a preset stands
# in this file.
_ON_IMAGES: dict[str, dict[str, object]] = {
    "mamlpp": {"inner_steps": 3, "inner_rate": 0.5},
    "meta-sgd": {"test_inner_steps": 1},
    "matching": {"scale": 10.0},
}
_GRADIENT_OMNIGLOT = {
    "steps": 70_000,
    "meta_batch": 8,
    "rate": 1.5e-3,
    "queries": 1,
    "test_queries": 1,
    "inner_rate": 2.0,
    "validate_every": 7000,
}
_METRIC_OMNIGLOT = {"queries": 5, "test_queries": 15, "steps": 5000, "validate_every": 1000}
_PRESETS: dict[tuple[str, str], dict[str, object]] = {
    ("prototypical", "omniglot"): {"way": 60},
    ("mamlpp", "sinusoid"): {"inner_steps": 5, "test_inner_steps": 5},
    ("mamlpp", "linear"): {"inner_steps": 5, "test_inner_steps": 5},
}


def entry(algorithm: str) -> Entry:
    """The algorithm of that name."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"the algorithm {algorithm!r} is not known. {nearest(algorithm, ALGORITHMS)}")
    return ALGORITHMS[algorithm]


def preset(algorithm: str, data: str) -> dict[str, object]:
    """What the settings of an algorithm on a data set start from."""
    known = entry(algorithm)
    if data not in DATA:
        raise UsageError(f"--data {data!r} is not known. {nearest(data, DATA)}")
    if data in REGRESSION:
        if not known.regresses:
            raise UsageError(f"{algorithm} learns classes, not the real targets of --data {data}. Use --data glyphs.")
        values = _LINES if known.gradient_based else _LINES | _METRIC_LINES
    else:
        values = _GRADIENT if known.gradient_based else _METRIC
        if data == "omniglot":
            values = values | _OMNIGLOT | (_GRADIENT_OMNIGLOT if known.gradient_based else _METRIC_OMNIGLOT)
        values = values | _ON_IMAGES.get(algorithm, {})
    return values | _PRESETS.get((algorithm, data), {})


def network(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """The published network of the algorithm and the data."""
    known = entry(settings.algorithm)
    if pool is None:
        out = 1 if known.gradient_based else 32
        # Xavier: over four seeds its error after one step is 0.36 to 0.45, He's 0.54 to 0.88 (docs/results.md).
        return nn.MLP(1, out, width=40, depth=2, weight_init=nn.xavier_uniform, key=key)
    _, _, channels, size, _ = pool.images.shape
    if not known.gradient_based:
        return nn.conv4_64(channels, size, key=key)
    steps = settings.inner_steps
    norm = (lambda c: nn.PerStepNorm(steps, c)) if settings.algorithm == "mamlpp" else nn.maml_norm
    if (channels, size) == (1, 28):
        return nn.conv4_maml_omniglot(settings.way, norm=norm, key=key)
    return nn.Conv4(channels, size, out_size=settings.way, width=32, norm=norm, key=key)


def build_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """A learner at its initialisation."""
    return entry(settings.algorithm).build(settings, network(settings, pool, key), _loss(settings))


# Settings that only some runs use; one that was given and would not be used is refused.
_ONLY_GRADIENT_BASED = ("inner_rate", "inner_steps", "test_inner_steps")
_ONLY_METRIC = ("scale",)
_ONLY_IMAGES = ("way", "test_way", "norm_policy")


def check_given(given: Collection[str], settings: Settings) -> None:
    """Refuse what contradicts itself before anything is loaded or written."""
    known = entry(settings.algorithm)
    unused: dict[str, str] = {}
    if known.gradient_based:
        unused |= dict.fromkeys(_ONLY_METRIC, f"{settings.algorithm} has no similarities to scale")
    else:
        unused |= dict.fromkeys(_ONLY_GRADIENT_BASED, f"{settings.algorithm} has no inner loop")
    if settings.regression:
        unused |= dict.fromkeys(_ONLY_IMAGES, f"--data {settings.data} has no classes and its network no batch norm")
    if settings.data not in ("omniglot", "folder"):
        unused["path"] = f"--data {settings.data} is built in"
    if settings.data != "omniglot":
        unused["split"] = f"--data {settings.data} has its own split"
    for name, why in unused.items():
        if name in given:
            raise UsageError(f"{option(name)} would not be used: {why}. Leave it out.")
    if known.gradient_based and not settings.regression and settings.test_way != settings.way:
        raise UsageError(
            f"--test-way {settings.test_way}: {settings.algorithm} has a head for {settings.way} classes and can be "
            "tested on no other number. Leave it out, or change --way."
        )
