"""The algorithms that the command line knows, and what each data set starts from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from metakit import losses, nn
from metakit._algorithm import Algorithm
from metakit._errors import nearest
from metakit._hyperparameter import learned
from metakit.inner import SGD
from metakit.learners import maml, matching, prototypical
from metakit.tasks import ImagePool

from ._config import Settings, UsageError


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


def _inner(configure: Callable[..., Any]) -> Callable[[Settings, Any, Callable[..., Any]], Any]:
    """MAML and the configurations that take an update rule."""

    def build(settings: Settings, network: Any, loss: Callable[..., Any]) -> Any:
        return configure(
            network,
            inner=SGD(settings.inner_rate),
            num_steps=settings.inner_steps,
            loss=loss,
            norm_policy=settings.norm_policy,
        )

    return build


def _rates(configure: Callable[..., Any]) -> Callable[[Settings, Any, Callable[..., Any]], Any]:
    """The configurations that learn their rates."""

    def build(settings: Settings, network: Any, loss: Callable[..., Any]) -> Any:
        return configure(
            network,
            rate=settings.inner_rate,
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
    "maml": Entry(maml, _inner(maml.MAML), "MAML, second order (Finn et al. 2017)", True, True),
    "fomaml": Entry(maml, _inner(maml.fomaml), "first-order MAML (Finn et al. 2017)", True, True),
    "anil": Entry(maml, _inner(maml.anil), "only the head adapts (Raghu et al. 2020)", True, True),
    "boil": Entry(maml, _inner(maml.boil), "only the body adapts (Oh et al. 2021)", True, True),
    "meta-sgd": Entry(maml, _rates(maml.meta_sgd), "a learned rate per parameter (Li et al. 2017)", True, True),
    "mamlpp": Entry(maml, _rates(maml.mamlpp), "MAML++ (Antoniou et al. 2019)", True, True),
    "matching": Entry(matching, _matching, "Matching Networks (Vinyals et al. 2016)", False, True),
    "prototypical": Entry(prototypical, _prototypical, "Prototypical Networks (Snell et al. 2017)", False, False),
}

_IMAGES = {"way": 5, "shot": 1, "seed": 0, "devices": 1, "scale": 1.0, "schedule": "cosine", "inner_rate": 1.0}
_GRADIENT = _IMAGES | {
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

# What differs from the rows above, by (algorithm, data); every number of a preset stands in this file.
_PRESETS: dict[tuple[str, str], dict[str, object]] = {
    ("mamlpp", "glyphs"): {"inner_steps": 3, "inner_rate": 0.5},
    ("meta-sgd", "glyphs"): {"test_inner_steps": 1},
    ("meta-sgd", "omniglot"): {"test_inner_steps": 1},
    ("maml", "omniglot"): {
        "steps": 5000,
        "meta_batch": 16,
        "queries": 1,
        "test_queries": 1,
        "inner_rate": 2.0,
        "validate_every": 1000,
    },
    ("prototypical", "omniglot"): {"way": 60, "queries": 5, "test_queries": 15, "steps": 2000, "validate_every": 500},
    ("matching", "omniglot"): {"way": 20, "queries": 5, "test_queries": 15, "steps": 2000, "validate_every": 500},
}


def entry(algorithm: str) -> Entry:
    """The algorithm of that name."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"the algorithm {algorithm!r} is not known. {nearest(algorithm, ALGORITHMS)}")
    return ALGORITHMS[algorithm]


def preset(algorithm: str, data: str) -> dict[str, object]:
    """What the settings of an algorithm on a data set start from."""
    known = entry(algorithm)
    if data in ("sinusoid", "linear"):
        if not known.regresses:
            raise UsageError(f"{algorithm} learns classes, not the real targets of --data {data}. Use --data glyphs.")
        values = dict(_LINES)
        if not known.gradient_based:
            values |= {"inner_steps": 0, "test_inner_steps": 0, "scale": 10.0, "norm_policy": "transductive"}
        if algorithm in ("mamlpp",):
            values |= {"inner_steps": 5, "test_inner_steps": 5}
    else:
        values = dict(_GRADIENT if known.gradient_based else _METRIC)
        if algorithm == "matching":
            values |= {"scale": 10.0}
        if algorithm == "mamlpp":
            values |= {"test_inner_steps": 3}
        if data == "omniglot":
            values |= _OMNIGLOT
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
