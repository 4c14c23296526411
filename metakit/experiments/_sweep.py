"""Several seeds, or several settings, of one experiment: trained in one go, and the spread between them told apart."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit import evaluate, train
from metakit._compile import runs_alone

from ._assess import TRAINED
from ._experiment import Experiment
from ._folder import RunFolder, write
from ._listeners import Listener, Log
from ._loaded import Run, initial_state
from ._record import identity
from ._run import begin, run, validation
from ._scores import AbstractScores

_MOST_STEPS_AT_ONCE = 50


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs of one experiment under several seeds or settings.

    **Arguments:**

    - `runs`: by name.
    - `between_runs`: the mean of the runs' test scores, and an interval that covers the choice of *seed*.
    - `between_tasks`: the standard deviation between test tasks, a mean over the runs.

    >>> Sweep({}, None, 0.0).runs
    {}
    """

    runs: Mapping[str, Run]
    between_runs: evaluate.Interval | Any
    between_tasks: float


def sweep(
    experiments: Mapping[str, Experiment],
    folder: str | os.PathLike[str],
    *,
    listeners: Sequence[Listener] = (),
    quiet: bool = False,
) -> Sweep:
    """Run several experiments that belong together, each in a folder of its own, and report the spread between them.

    Those that differ in their learners' numbers and keys alone, and whose tasks are small, are trained together, mapped
    by `vmap` in one compiled program; all others one after another.

    **Arguments:**

    - `experiments`: by name, at least two, such as `{"seed-0": ..., "seed-1": ...}`; scored by one score.
    - `folder`: where the runs' folders are made; a sweep that was stopped goes on.
    - `listeners`: as in `run`, told of one run after another. Of runs that were trained together they hear
      `mk.train.Resumed` at the last step; `TensorBoard` and `WeightsAndBiases` then read their curves from the log.
    - `quiet`: show nothing; default `False`.

    **Returns:** a `Sweep`; `report.md` in the folder shows it.

    **Raises:** `ValueError` for fewer than two experiments, or for different scores; what `run` raises.

    >>> sweep({}, "runs/none")
    Traceback (most recent call last):
    ...
    ValueError: experiments must name at least two to compare, got 0.
    """
    if len(experiments) < 2:
        raise ValueError(f"experiments must name at least two to compare, got {len(experiments)}.")
    names = {experiment.scores.name for experiment in experiments.values()}
    if len(names) > 1:
        raise ValueError(f"experiments must be scored by one score, got {', '.join(sorted(names))}.")
    root = pathlib.Path(folder)
    if trains_together(list(experiments.values())):
        train_together(experiments, root)
    told = {"listeners": listeners, "quiet": quiet}
    runs = {name: run(experiment, root / name, **told) for name, experiment in experiments.items()}
    if not all(one.finished for one in runs.values()):
        return Sweep(runs, None, float("nan"))
    scores = [one.scores[TRAINED] for one in runs.values()]
    means = [float(np.mean(one)) for one in scores]
    spread = float(np.mean([np.std(one, ddof=1) for one in scores]))
    result = Sweep(runs, evaluate.student_t(means), spread)
    write(root / "report.md", _report(result, next(iter(experiments.values())).scores))
    return result


def trains_together(experiments: list[Experiment]) -> bool:
    """Whether experiments differ in their learners' numbers and keys alone, and are small enough to gain by it.

    Images are not: on a CPU a task of them keeps the cores busy by itself."""
    first, *others = experiments
    if first.devices > 1:
        return False
    task = eqx.filter_eval_shape(first.train, jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(task) if hasattr(leaf, "size"))
    if runs_alone(size, jax.default_backend()):
        return False
    static = ("algorithm", "optimiser", "steps", "meta_batch", "validate_every", "chunk")
    for other in others:
        if any(getattr(first, name) != getattr(other, name) for name in static):
            return False
        same = (eqx.tree_equal(getattr(first, name), getattr(other, name)) for name in ("train", "rule", "anneal"))
        if not all(bool(one) for one in same) or _shapes(first.learner) != _shapes(other.learner):
            return False
    return True


def _shapes(learner: Any) -> Any:
    leaves = [(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in jax.tree.leaves(learner)]
    return jax.tree.structure(learner), leaves


def train_together(experiments: Mapping[str, Experiment], root: pathlib.Path) -> None:
    """Train all of them in one compiled program, up to the last checkpoint of each; `run` then tests them."""
    first = next(iter(experiments.values()))
    places = [RunFolder(root / name) for name in experiments]
    for experiment, place in zip(experiments.values(), places, strict=True):
        begin(experiment, place)
    with contextlib.ExitStack() as stack:
        kept = [
            stack.enter_context(train.Checkpoints(place.checkpoints, config=identity(experiment)))
            for experiment, place in zip(experiments.values(), places, strict=True)
        ]
        taken = {checkpoints.latest_step or 0 for checkpoints in kept}
        if len(taken) > 1 or first.steps in taken:
            return  # stopped between two saves: each goes on by itself
        members = [
            _Member(experiment, checkpoints, place)
            for experiment, checkpoints, place in zip(experiments.values(), kept, places, strict=True)
        ]
        _train(first, members, taken.pop())


class _Member:
    """One of the trainings: its state, its best learner, and its log."""

    def __init__(self, experiment: Experiment, checkpoints: train.Checkpoints, place: RunFolder):
        self.experiment, self.checkpoints = experiment, checkpoints
        place.rewind(checkpoints.latest_step or 0)
        self.tell = Log(place)
        self.state, self.best = initial_state(experiment), None
        if checkpoints.latest_step is not None:
            self.best = checkpoints.restore_best(self.state.learner)
            self.state = checkpoints.restore(self.state)
        self.validate = None if experiment.val is None else validation(experiment)

    def after(self, state: train.TrainState, step: int, *, validate: bool) -> None:
        """Validate and save a state."""
        self.state = state
        if not validate:
            return
        if self.validate is not None:
            result = self.validate(state.learner)
            score = next(iter(result.values())).mean
            highest = self.experiment.scores.best == "highest"
            better = self.best is None or (score > self.best.score if highest else score < self.best.score)
            if np.isfinite(score) and better:
                self.best = train.Best(state.learner, score, step)
            self.tell(train.Validated(step, result, score, better))
        self.checkpoints.save(state, self.best)


def _train(first: Experiment, members: list[_Member], taken: int) -> None:
    period = first.validate_every or first.steps
    size = max(n for n in range(1, _MOST_STEPS_AT_ONCE + 1) if period % n == 0)
    arrays, static = zip(*(eqx.partition(member.state, eqx.is_array) for member in members), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)

    @eqx.filter_jit
    def steps(stacked: Any) -> Any:
        def one(arrays: Any) -> Any:
            state, diagnostics = train.run_steps(
                first.algorithm,
                first.optimiser,
                eqx.combine(arrays, static[0]),
                first.train,
                num_steps=size,
                meta_batch=first.meta_batch,
                chunk=first.chunk,
                anneal=first.anneal,
                rule=first.rule,
            )
            return eqx.filter(state, eqx.is_array), diagnostics

        return jax.vmap(one)(stacked)

    while taken < first.steps:
        stacked, diagnostics = steps(stacked)
        taken += size
        for i, member in enumerate(members):
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], (stacked, diagnostics))
            state, told = eqx.combine(mine[0], static[i]), mine[1]
            loss, norm = float(jnp.mean(told.loss)), float(jnp.mean(told.gradient_norm))
            if not bool(jnp.all(told.finite)):
                raise train.NonFiniteLossError(taken - size, loss, norm, member.state)
            member.tell(train.Progress(taken, loss, norm, float("nan"), float("nan")))
            member.after(state, taken, validate=taken % period == 0)


def _report(result: Sweep, scores: AbstractScores) -> str:
    factor, unit = (100, " %") if scores.is_share else (1, "")
    lines = ["# Several seeds", "", f"| run | {scores.in_words}, 95 % interval over test tasks |", "|---|---|"]
    for name, one in result.runs.items():
        lines.append(f"| [{name}]({name}/report.md) | {scores.show(evaluate.student_t(one.scores[TRAINED]))} |")
    between = result.between_runs
    return "\n".join(
        [
            *lines,
            "",
            f"- Mean over {len(result.runs)} runs: {scores.show(between)} (95 % interval over runs, Student t)",
            f"- Standard deviation between runs: {factor * between.std:.4g}{unit}",
            f"- Standard deviation between test tasks: {factor * result.between_tasks:.4g}{unit}",
            "",
            "The interval of a single run covers the choice of test tasks. How much another training would differ, the "
            "spread between runs says.",
            "",
        ]
    )
