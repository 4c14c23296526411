"""What a run starts from: a fresh learner, or the one that another run has trained."""

import itertools
import pathlib
from typing import Any

import equinox as eqx
import jax

from metakit import train
from metakit._hyperparameter import trainable

from ._algorithms import ALGORITHMS, build_learner, entry
from ._config import Settings, UsageError, option
from ._data import Data
from ._run_folder import RunFolder, open_run


def initial_state(chosen: Settings, data: Data, learner: Any = None) -> tuple[Any, train.TrainState]:
    """Optimiser and training state at step 0; of a fresh learner where none is given."""
    optimiser = ALGORITHMS[chosen.algorithm].optimiser(chosen)
    learner = _fresh(chosen, data) if learner is None else learner
    state = train.init(learner, optimiser, key=jax.random.fold_in(jax.random.key(chosen.seed), 1), trainable=trainable)
    return optimiser, state


def _fresh(chosen: Settings, data: Data) -> Any:
    return build_learner(chosen, data.pools.get("train"), jax.random.key(chosen.seed))


def trained_learner(folder: RunFolder, trained: Settings, data: Data) -> Any:
    """The learner that a run is tested with: the best by validation.

    Where the classes of validation were trained on, a validation chooses nothing, and it is the last."""
    none_yet = UsageError(f"{folder.path} holds no checkpoint yet. Continue it with --resume {folder.path}.")
    if not folder.checkpoints.exists():
        raise none_yet
    _, template = initial_state(trained, data)
    with train.Checkpoints(folder.checkpoints) as checkpoints:
        if checkpoints.latest_step is None:
            raise none_yet
        best = None if trained.trainval else checkpoints.restore_best(template.learner)
        return checkpoints.restore(template).learner if best is None else best.learner


def first_learner(chosen: Settings, data: Data) -> Any:
    """The learner at step 0: a fresh one, with the numbers of another run's where `--start-from` names it."""
    fresh = _fresh(chosen, data)
    if chosen.start_from is None:
        return fresh
    start = f"--start-from {chosen.start_from}"
    folder, trained = open_run(pathlib.Path(chosen.start_from))
    _check_agreement(chosen, trained, start)
    try:
        learner = trained_learner(folder, trained, data)
    except train.CheckpointError as error:
        raise UsageError(f"{start}: {error}") from error
    return _filled(fresh, learner, start)


def _check_agreement(chosen: Settings, trained: Settings, start: str) -> None:
    """Refuse a start that would leave an option without effect, or have seen the test's classes."""
    if trained.algorithm != chosen.algorithm:
        raise UsageError(f"{start} is a run of {trained.algorithm}; this is one of {chosen.algorithm}.")
    # What a learner holds as numbers beside its weights.
    held = [name for name in ("inner_rate", "scale") if name in entry(chosen.algorithm).uses]
    if chosen.algorithm == "rl-maml":  # a rate for each step
        held += ["inner_steps", "test_inner_steps"]
    # What decides which classes are for what.
    dealt = {"omniglot": ["split"], "folder": ["path", "seed", "test_way"]} if chosen.data == trained.data else {}
    for name in held + dealt.get(chosen.data, []):
        theirs, ours = getattr(trained, name), getattr(chosen, name)
        if theirs != ours:
            why = "the learner holds it" if name in held else "another one would test on classes that it was trained on"
            raise UsageError(f"{start} has {option(name)} {theirs}, this run {ours}: {why}. Give it {theirs} too.")
    if chosen.data == trained.data and trained.trainval and not chosen.trainval:
        raise UsageError(
            f"{start} has seen the classes of validation, which could choose nothing here. Add --trainval."
        )


def _filled(fresh: Any, learner: Any, start: str) -> Any:
    """A learner of this run's settings with another's numbers."""
    empty, rest = eqx.partition(fresh, eqx.is_array)
    numbers = eqx.filter(learner, eqx.is_array)
    for theirs, ours in itertools.zip_longest(_leaves_in_words(numbers), _leaves_in_words(empty)):
        if theirs != ours:
            raise UsageError(
                f"{start} holds another network: it has {theirs or 'nothing'} where this run has {ours or 'nothing'}. "
                "Give this run the settings of that one, such as --way."
            )
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(empty), jax.tree.leaves(numbers)), rest)


def _leaves_in_words(tree: Any) -> list[str]:
    return [f"{jax.tree_util.keystr(path)} {list(leaf.shape)}" for path, leaf in jax.tree.leaves_with_path(tree)]
