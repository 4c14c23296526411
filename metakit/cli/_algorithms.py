"""The algorithms that the command line knows: a new one is an entry in ALGORITHMS, and its numbers in _presets."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from metakit import train
from metakit._algorithm import Algorithm
from metakit._errors import nearest
from metakit.learners import (
    maml,
    mann,
    matching,
    meta_lstm,
    metagan,
    neural_process,
    prototypical,
    relation,
    reptile,
    ridge,
    rl_maml,
    rl_squared,
    snail,
    statistician,
    versa,
)
from metakit.tasks import ImagePool

from . import _generative, _learners
from ._config import IMAGES, LINES, Settings, UsageError
from ._environments import BANDITS, NAVIGATION
from ._forms import CURVES, EPISODES, GAUSSIAN_CURVES, ORDERED_EPISODES, SEQUENCES, AbstractForm

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
_ADAM = ("rate", "schedule", "clip_norm")
_EPISODES = ("queries", "test_queries", "norm_policy")
_METRIC = (*_ADAM, *_EPISODES)
_STEPS = ("inner_steps", "test_inner_steps")
_GRADIENT = (*_METRIC, *_STEPS, "inner_rate")


def adam(settings: Settings) -> optax.GradientTransformation:
    """Adam with the schedule of the settings."""
    whole, fifth = {"num_steps": settings.steps}, {"every": max(settings.steps // 5, 1)}
    options = {"cosine": whole, "cooldown": whole, "halving": fifth}
    return train.adam(
        settings.rate,
        schedule=settings.schedule,
        clip_norm=settings.clip_norm,
        **options.get(settings.schedule, {}),
    )


def _towards_solutions(settings: Settings) -> optax.GradientTransformation:
    """Reptile's published outer step: a rate that falls to 0 along a line."""
    return optax.sgd(optax.linear_schedule(settings.rate, 0.0, settings.steps))


def _two_players(settings: Settings) -> optax.GradientTransformation:
    """MetaGAN's generator: DCGAN's momentum, and the classifier's rate without its schedule."""
    generator = optax.adam(settings.rate, b1=0.5)
    return optax.multi_transform({"discriminator": adam(settings), "generator": generator}, metagan.players)


# How often PPO goes over what it collected; each time is a step of the optimiser.
_EPOCHS = 3


def _for_epochs(settings: Settings) -> optax.GradientTransformation:
    return adam(dataclasses.replace(settings, steps=_EPOCHS * settings.steps))


def _none(settings: Settings) -> optax.GradientTransformation:
    """A trust region step needs no optimiser."""
    del settings
    return optax.identity()


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
    uses: tuple[str, ...] = _METRIC
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


def _of_maml(configure: Callable[..., Any], about: str, *, learns_rates: bool = False, **options: Any) -> Entry:
    return Entry(
        maml,
        _learners.maml_like(configure, learns_rates=learns_rates),
        about,
        uses=_GRADIENT,
        data=(*IMAGES, *LINES),
        fixed_way=True,
        as_tested=_learners.with_test_steps(maml.with_num_steps),
        untrained=_learners.adapted_at_length,
        reports_steps=True,
        **options,
    )


def _neural_process(about: str, **options: Any) -> Entry:
    return Entry(
        neural_process,
        _generative.neural_process_learner(**options),
        about,
        uses=(*_ADAM, "queries", "test_queries"),
        data=("gp",),
    )


ALGORITHMS = {
    "maml": _of_maml(maml.MAML, "MAML, second order (Finn et al. 2017)"),
    "fomaml": _of_maml(maml.fomaml, "first-order MAML (Finn et al. 2017)"),
    "anil": _of_maml(maml.anil, "only the head adapts (Raghu et al. 2020)"),
    "boil": _of_maml(maml.boil, "only the body adapts (Oh et al. 2021)"),
    "meta-sgd": _of_maml(maml.meta_sgd, "a learned rate per parameter (Li et al. 2017)", learns_rates=True),
    "mamlpp": _of_maml(
        maml.mamlpp, "MAML++ (Antoniou et al. 2019)", learns_rates=True, anneal=_learners.mamlpp_schedule
    ),
    "reptile": Entry(
        reptile,
        _learners.reptile_learner,
        "Reptile (Nichol et al. 2018)",
        uses=("rate", *_EPISODES, *_STEPS, "inner_rate", "inner_batch"),
        fixed_way=True,
        optimiser=_towards_solutions,
        as_tested=_learners.reptile_as_tested,
    ),
    "meta-lstm": Entry(
        meta_lstm,
        _learners.meta_lstm_learner,
        "the Meta-Learner LSTM (Ravi and Larochelle 2017)",
        uses=_GRADIENT,
        fixed_way=True,
        as_tested=_learners.with_test_steps(meta_lstm.with_num_steps),
    ),
    "matching": Entry(
        matching,
        _learners.matching_learner,
        "Matching Networks (Vinyals et al. 2016)",
        uses=(*_METRIC, "scale"),
        data=(*IMAGES, *LINES),
    ),
    "prototypical": Entry(
        prototypical,
        _learners.prototypical_learner,
        "Prototypical Networks (Snell et al. 2017)",
        uses=(*_METRIC, "scale"),
    ),
    "relation": Entry(relation, _learners.relation_learner, "Relation Networks (Sung et al. 2018)"),
    "r2d2": Entry(
        ridge,
        _learners.closed_form(ridge.r2d2),
        "R2-D2, ridge regression in closed form (Bertinetto et al. 2019)",
        uses=(*_METRIC, "scale"),
    ),
    "lrd2": Entry(
        ridge,
        _learners.closed_form(ridge.lrd2),
        "LR-D2, logistic regression by Newton steps (Bertinetto et al. 2019)",
        uses=(*_METRIC, "scale"),
    ),
    "versa": Entry(versa, _learners.versa_learner, "VERSA (Gordon et al. 2019)"),
    "metagan": Entry(
        metagan,
        _learners.metagan_learner,
        "MetaGAN over Prototypical Networks (Zhang et al. 2018)",
        optimiser=_two_players,
    ),
    "snail": Entry(
        snail,
        _learners.snail_learner,
        "SNAIL (Mishra et al. 2018)",
        images=ORDERED_EPISODES,
        fixed_way=True,
    ),
    "mann": Entry(
        mann,
        _learners.mann_learner,
        "a memory-augmented network (Santoro et al. 2016)",
        uses=_ADAM,
        images=SEQUENCES,
        fixed_way=True,
        chunk=None,  # a step of one sequence reads every weight for a single product
    ),
    "statistician": Entry(
        statistician,
        _generative.statistician_learner,
        "the Neural Statistician (Edwards and Storkey 2017)",
        uses=(*_ADAM, "queries", "test_queries"),
        norm="frozen: its statistics are those of training sets (at most 200), so no test set sees another",
        anneal=_generative.statistician_schedule,
        as_tested=_generative.statistician_as_tested,
    ),
    "rl-maml": Entry(
        rl_maml,
        _learners.rl_maml_learner,
        "MAML on policy gradients, trust region steps (Finn et al. 2017)",
        uses=(*_STEPS, "inner_rate"),
        data=("navigation",),
        optimiser=_none,
        rule=lambda: train.TrustRegion(0.01),
        as_tested=_learners.with_test_steps(rl_maml.with_num_steps),
    ),
    "rl-squared": Entry(
        rl_squared,
        _learners.rl_squared_learner,
        "RL^2 with a GRU and PPO (Duan et al. 2016)",
        uses=_ADAM,
        data=("bandits",),
        optimiser=_for_epochs,
        rule=lambda: train.Epochs(_EPOCHS),
    ),
    "cnp": _neural_process("a Conditional Neural Process (Garnelo et al. 2018)"),
    "np": _neural_process("a Neural Process (Garnelo et al. 2018)", latent=True),
    "acnp": _neural_process("a Conditional Neural Process with attention", attention="multihead"),
    "anp": _neural_process("an Attentive Neural Process (Kim et al. 2019)", latent=True, attention="multihead"),
}


def entry(algorithm: str) -> Entry:
    """The algorithm of that name."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"the algorithm {algorithm!r} is not known. {nearest(algorithm, ALGORITHMS)}")
    return ALGORITHMS[algorithm]


_OF_DATA: dict[str, AbstractForm] = {
    **dict.fromkeys(LINES, CURVES),
    "gp": GAUSSIAN_CURVES,
    "bandits": BANDITS,
    "navigation": NAVIGATION,
}


def form_of(settings: Settings) -> AbstractForm:
    """What a task of a run is."""
    return _OF_DATA.get(settings.data) or entry(settings.algorithm).images


def build_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """A learner at its initialisation."""
    return entry(settings.algorithm).build(settings, pool, key)


def as_tested(settings: Settings, learner: Any, pool: ImagePool | None) -> Any:
    """A learner as it is validated and tested."""
    return entry(settings.algorithm).as_tested(settings, learner, pool)
