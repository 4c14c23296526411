"""`metakit train`: a run from its first step to its report."""

import dataclasses
import functools
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from metakit import evaluate, train
from metakit._hyperparameter import trainable
from metakit.learners import maml
from metakit.sharding import task_mesh

from . import _pictures
from ._assess import assess, by_inner_steps, metric_of, test_learner
from ._config import DEFAULT_DATA, Settings, Train, explicit, settings
from ._data import Data, load
from ._devices import offer
from ._display import Display
from ._presets import ALGORITHMS, build_learner, check_given, preset
from ._report import as_command, as_record, report, show_table
from ._run_folder import RunFolder, create, resume, write

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def run(options: Train, console: Console) -> int:
    """Train, test and report; returns the exit status."""
    if options.resume is None:
        chosen = settings(options, preset(options.algorithm, options.data or DEFAULT_DATA))
        offer(chosen.devices)
        check_given(explicit(options), chosen)
        # Before the folder is made: a wrong path or option leaves nothing behind.
        data = load(chosen, download=options.download)
        test_learner(chosen, initial_state(chosen, data)[1].learner)
        folder = create(options, chosen)
    else:
        folder, chosen = resume(options)
        offer(chosen.devices)
        data = load(chosen, download=options.download)
    console.print(f"{ALGORITHMS[chosen.algorithm].about} on {data.about}", highlight=False)
    console.print(f"run folder: {folder.path}", highlight=False)
    try:
        return _run(chosen, data, folder, console)
    except (KeyboardInterrupt, train.DiskFullError):
        _say_how_to_continue(chosen, folder, console)
        raise


def _run(chosen: Settings, data: Data, folder: RunFolder, console: Console) -> int:
    started = time.perf_counter()
    try:
        result = _fit(chosen, data, folder, console)
    except train.NonFiniteLossError:
        if any(folder.checkpoints.glob("[0-9]*")):
            console.print(f"The checkpoints before it are in {folder.checkpoints}.", highlight=False)
        raise
    if result.interrupted:
        _say_how_to_continue(chosen, folder, console)
        return INTERRUPTED
    finish(chosen, data, folder, result.best_learner, console, started)
    return 0


def _say_how_to_continue(chosen: Settings, folder: RunFolder, console: Console) -> None:
    console.print(
        f"continue with: metakit train {chosen.algorithm} --resume {folder.path}", highlight=False, markup=False
    )


def optimiser_of(chosen: Settings) -> Any:
    """Adam with the schedule of the settings."""
    options = {"cosine": {"num_steps": chosen.steps}, "halving": {"every": max(chosen.steps // 5, 1)}, "constant": {}}
    return train.adam(chosen.rate, schedule=chosen.schedule, clip_norm=chosen.clip_norm, **options[chosen.schedule])


def initial_state(chosen: Settings, data: Data) -> tuple[Any, train.TrainState]:
    """Learner, optimiser and training state at step 0."""
    optimiser = optimiser_of(chosen)
    learner = build_learner(chosen, data.pools.get("train"), jax.random.key(chosen.seed))
    state = train.init(learner, optimiser, key=jax.random.fold_in(jax.random.key(chosen.seed), 1), trainable=trainable)
    return optimiser, state


def _fit(chosen: Settings, data: Data, folder: RunFolder, console: Console) -> train.FitResult:
    optimiser, state = initial_state(chosen, data)
    algorithm = ALGORITHMS[chosen.algorithm].algorithm
    metric = metric_of(chosen)
    validation_key = jax.random.fold_in(jax.random.key(chosen.seed), 2)

    def validate(learner: Any) -> dict[str, evaluate.Interval]:
        scores = evaluate.scores(
            algorithm,
            test_learner(chosen, learner),
            data.val,
            validation_key,
            num_tasks=chosen.validation_tasks,
            metrics=metric,
        )
        return {name: evaluate.student_t(score) for name, score in scores.items()}

    anneal = None
    if chosen.algorithm == "mamlpp":
        anneal = eqx.Partial(_anneal, num_steps=chosen.inner_steps, decay_steps=max(chosen.steps // 4, 1))
    display = Display(console, steps=chosen.steps, regression=chosen.regression)

    def listen(event: train.Event) -> None:
        _log(folder, event)
        display.event(event)

    mesh = task_mesh(chosen.devices) if chosen.devices > 1 else None
    with (
        train.Checkpoints(folder.checkpoints, config=dataclasses.asdict(chosen)) as checkpoints,
        display,
    ):
        folder.rewind(checkpoints.latest_step or 0)
        return train.fit(
            algorithm,
            optimiser,
            state,
            data.train,
            num_steps=chosen.steps,
            meta_batch=chosen.meta_batch,
            validate=validate,
            validate_every=chosen.validate_every,
            best="lowest" if chosen.regression else "highest",
            checkpoints=checkpoints,
            on_event=listen,
            mesh=mesh,
            anneal=anneal,
        )


def _anneal(learner: Any, step: Any, *, num_steps: int, decay_steps: int) -> Any:
    weights = maml.multi_step_weights(step, num_steps, decay_steps)
    return maml.with_step_weights(learner, weights.astype(learner.step_weights.value.dtype))


def _log(folder: RunFolder, event: train.Event) -> None:
    if isinstance(event, train.Progress):
        folder.log(event="progress", **event._asdict())
    elif isinstance(event, train.Validated):
        interval = next(iter(event.result.values()))
        ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        folder.log(event="validated", step=event.step, is_best=event.is_best, **ends)


def finish(chosen: Settings, data: Data, folder: RunFolder, learner: Any, console: Console, started: float) -> None:
    """Test the best learner, draw the pictures and write the report."""
    key = jax.random.fold_in(jax.random.key(chosen.seed), 3)
    assessment = assess(chosen, data, learner, key)
    folder.log(event="test", **as_record(assessment))
    steps = by_inner_steps(chosen, data, learner, key) if ALGORITHMS[chosen.algorithm].gradient_based else []
    folder.log(event="inner steps", scores=[{"mean": i.mean, "low": i.low, "high": i.high} for i in steps])
    seconds = time.perf_counter() - started
    # The numbers first: a picture that cannot be drawn must not cost them.
    shared = {"about": data.about, "seconds": seconds, "command": as_command(chosen)}
    page = functools.partial(report, chosen, assessment, steps, **shared)
    write(folder.report, page(pictures=[]))
    show_table(console, chosen, assessment, about=data.about)
    write(folder.report, page(pictures=draw(chosen, data, folder, learner, key, steps)))
    console.print(f"report: {folder.report}", highlight=False)


def draw(
    chosen: Settings, data: Data, folder: RunFolder, learner: Any, key: Any, steps: list[evaluate.Interval]
) -> list[tuple[str, str]]:
    """The pictures of a run, as (title, file)."""
    algorithm, tested = ALGORITHMS[chosen.algorithm].algorithm, test_learner(chosen, learner)
    score = "mean squared error" if chosen.regression else "accuracy"
    pictures = [("Learning curve", "learning-curve.png")]
    _pictures.learning_curve(folder.records(), folder.path / "learning-curve.png", score=score)
    if chosen.regression:
        curves = [_curve(algorithm, tested, data.test(jax.random.fold_in(key, i)), chosen) for i in range(3)]
        _pictures.regression_curves(curves, folder.path / "curves.png")
        pictures.append(("Three test tasks, before and after adaptation", "curves.png"))
    else:
        episode = data.test(key)
        predicted = jnp.argmax(algorithm.predict(algorithm.adapt(tested, episode.support), episode.query.x), axis=-1)
        _pictures.episode_grid(episode.support, episode.query, predicted, folder.path / "episode.png")
        pictures.append(("One test episode", "episode.png"))
    if steps:
        _pictures.inner_steps(steps, folder.path / "inner-steps.png", score=score)
        pictures.append(("Score against inner steps", "inner-steps.png"))
    return pictures


def _curve(algorithm: Any, learner: Any, episode: Any, chosen: Settings) -> dict[str, Any]:
    lowest, highest = (-5.0, 5.0) if chosen.data == "sinusoid" else (-1.0, 1.0)
    x = jnp.linspace(lowest, highest, 200, dtype=episode.support.x.dtype)[:, None]
    curve = {
        "x": x[:, 0],
        "after": algorithm.predict(algorithm.adapt(learner, episode.support), x)[:, 0],
        "support_x": episode.support.x[:, 0],
        "support_y": episode.support.y[:, 0],
        "truth_x": episode.query.x[:, 0],
        "truth_y": episode.query.y[:, 0],
    }
    if ALGORITHMS[chosen.algorithm].gradient_based:
        curve["before"] = learner.model(x)[:, 0]
    return {name: np.asarray(value) for name, value in curve.items()}
