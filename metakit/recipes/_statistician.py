"""The Neural Statistician."""

from typing import Any

import equinox as eqx
import jax

from metakit import tasks as families
from metakit.experiments import Experiment
from metakit.learners import statistician as learner_of

from .parts import (
    MORE_TASKS,
    Adam,
    AnyWay,
    Budget,
    Folder,
    Glyphs,
    Omniglot,
    on_episodes,
    recipe,
)

ABOUT = "the Neural Statistician (Edwards and Storkey 2017)"
# As many training sets as batch norm's statistics are fixed on for a test.
_SETS = 200
_NORM = f"frozen: its statistics are those of training sets (at most {_SETS}), so no test set sees another"
_freeze = eqx.filter_jit(learner_of.freeze_statistics)


@recipe(ABOUT, omniglot={"test_queries": 15, "steps": 150_000, "validate_every": 15_000, **MORE_TASKS})
def statistician(
    data: Glyphs | Omniglot | Folder = Glyphs(),
    tasks: AnyWay = AnyWay(way=16, queries=4),
    outer: Adam = Adam(rate=2e-3, schedule="cosine"),
    budget: Budget = Budget(steps=500, meta_batch=1, validate_every=100),
) -> Experiment:
    """The Neural Statistician: a generative model of sets, which are classes of images.

    A quarter of the published filters and of the context, for time. It is trained on sets of `shot` + `queries` images.
    Half of each set is hidden from its summary: what is left in it is what the set's images share, and with one shot
    the test's sets are no smaller than those seen."""
    parts = data.load(tasks, seed=budget.seed)
    key = jax.random.key(budget.seed)
    options = {"filters": 16, "context_size": 128, "sample_dropout": 0.5}
    pool = parts.pools["train"]
    sets = families.Episodes(pool, min(_SETS, len(pool.names)), tasks.shot, tasks.queries)
    sets_key, freeze_key = jax.random.split(jax.random.fold_in(key, 4))

    def as_tested(learner: Any) -> Any:
        """Batch norm with the statistics of training sets."""
        return _freeze(learner, sets(sets_key), freeze_key)

    # Reconstruction weighs more at first, for a few hundredths of the training, as published.
    anneal = eqx.Partial(learner_of.anneal_emphasis, halve_every=max(budget.steps // 100, 1))
    return on_episodes(
        learner_of,
        learner_of.of_images(*parts.shape, **options, key=key),
        ABOUT,
        parts,
        tasks,
        None,
        outer,
        budget,
        norm_in_words=_NORM,
        as_tested=as_tested,
        anneal=anneal,
    )
