"""The algorithms that the command line knows: a new one is an entry in ALGORITHMS, and its numbers in _presets."""

from collections.abc import Callable
from typing import Any

import jax

from metakit import train
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

from . import _generative, _learners, _optimisers
from ._config import IMAGES, LINES, Settings, UsageError
from ._entry import ADAM, EPISODE, GRADIENT, METRIC, STEPS, Entry
from ._environments import BANDITS, NAVIGATION
from ._forms import CURVES, GAUSSIAN_CURVES, ORDERED_EPISODES, SEQUENCES, AbstractForm


def _of_maml(configure: Callable[..., Any], about: str, *, learns_rates: bool = False, **options: Any) -> Entry:
    return Entry(
        maml,
        _learners.maml_like(configure, learns_rates=learns_rates),
        about,
        uses=GRADIENT,
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
        uses=(*ADAM, "queries", "test_queries"),
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
        uses=("rate", *EPISODE, *STEPS, "inner_rate", "inner_batch"),
        fixed_way=True,
        optimiser=_optimisers.towards_solutions,
        as_tested=_learners.reptile_as_tested,
    ),
    "meta-lstm": Entry(
        meta_lstm,
        _learners.meta_lstm_learner,
        "the Meta-Learner LSTM (Ravi and Larochelle 2017)",
        uses=GRADIENT,
        fixed_way=True,
        as_tested=_learners.with_test_steps(meta_lstm.with_num_steps),
    ),
    "matching": Entry(
        matching,
        _learners.matching_learner,
        "Matching Networks (Vinyals et al. 2016)",
        uses=(*METRIC, "scale"),
        data=(*IMAGES, *LINES),
    ),
    "prototypical": Entry(
        prototypical,
        _learners.prototypical_learner,
        "Prototypical Networks (Snell et al. 2017)",
        uses=(*METRIC, "scale"),
    ),
    "relation": Entry(relation, _learners.relation_learner, "Relation Networks (Sung et al. 2018)"),
    "r2d2": Entry(
        ridge,
        _learners.closed_form(ridge.r2d2),
        "R2-D2, ridge regression in closed form (Bertinetto et al. 2019)",
        uses=(*METRIC, "scale"),
    ),
    "lrd2": Entry(
        ridge,
        _learners.closed_form(ridge.lrd2),
        "LR-D2, logistic regression by Newton steps (Bertinetto et al. 2019)",
        uses=(*METRIC, "scale"),
    ),
    "versa": Entry(versa, _learners.versa_learner, "VERSA (Gordon et al. 2019)"),
    "metagan": Entry(
        metagan,
        _generative.metagan_learner,
        "MetaGAN over Prototypical Networks (Zhang et al. 2018)",
        optimiser=_optimisers.two_players,
    ),
    "metagan-maml": Entry(
        metagan,
        _generative.metagan_maml_learner,
        "MetaGAN over MAML, which adapts to fakes too (Zhang et al. 2018)",
        uses=GRADIENT,
        fixed_way=True,
        optimiser=_optimisers.two_players,
        as_tested=_learners.with_test_steps(_generative.metagan_with_num_steps),
        untrained=_generative.metagan_adapted_at_length,
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
        uses=ADAM,
        images=SEQUENCES,
        fixed_way=True,
        chunk=None,  # a step of one sequence reads every weight for a single product
    ),
    "statistician": Entry(
        statistician,
        _generative.statistician_learner,
        "the Neural Statistician (Edwards and Storkey 2017)",
        uses=(*ADAM, "queries", "test_queries"),
        norm="frozen: its statistics are those of training sets (at most 200), so no test set sees another",
        anneal=_generative.statistician_schedule,
        as_tested=_generative.statistician_as_tested,
    ),
    "rl-maml": Entry(
        rl_maml,
        _learners.rl_maml_learner,
        "MAML on policy gradients, trust region steps (Finn et al. 2017)",
        uses=(*STEPS, "inner_rate"),
        data=("navigation",),
        optimiser=_optimisers.identity,
        rule=lambda: train.TrustRegion(0.01),
        as_tested=_learners.with_test_steps(rl_maml.with_num_steps),
    ),
    "rl-squared": Entry(
        rl_squared,
        _learners.rl_squared_learner,
        "RL^2 with a GRU and PPO (Duan et al. 2016)",
        uses=ADAM,
        data=("bandits",),
        optimiser=_optimisers.for_epochs,
        rule=lambda: train.Epochs(_optimisers.EPOCHS),
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
