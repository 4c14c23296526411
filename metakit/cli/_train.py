"""`metakit train`: a run from its first step to its report."""

import dataclasses
import functools
import time
from typing import Any

import jax
from rich.console import Console

from metakit import evaluate, train
from metakit.sharding import task_mesh

from . import _pictures
from ._algorithms import ALGORITHMS, as_tested, form_of
from ._assess import Assessment, assess, by_inner_steps, try_out
from ._config import Settings, Train, explicit, settings
from ._data import Data, load
from ._devices import offer
from ._display import Display
from ._presets import check_given, default_data, preset
from ._refusals import as_usage
from ._report import as_command, as_record, report, show_table
from ._run_folder import RunFolder, create, resume, write
from ._start import first_learner, initial_state

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def run(options: Train, console: Console) -> int:
    """Train, test and report; returns the exit status."""
    if options.resume is None:
        name = options.data or default_data(options.algorithm)
        chosen = settings(options, name, preset(options.algorithm, name))
        offer(chosen.devices)
        check_given(explicit(options), chosen)
        # Before the folder is made: a wrong path or option leaves nothing behind.
        data = load(chosen, download=options.download)
        with as_usage():
            learner = first_learner(chosen, data)
        with as_usage("test_"):
            try_out(chosen, data, learner)
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
    assert result.state is not None
    # As in `trained_learner`: a validation on classes that were trained on chooses nothing.
    learner = result.state.learner if chosen.trainval else result.best_learner
    finish(chosen, data, folder, learner, console, started)
    return 0


def _say_how_to_continue(chosen: Settings, folder: RunFolder, console: Console) -> None:
    console.print(
        f"continue with: metakit train {chosen.algorithm} --resume {folder.path}", highlight=False, markup=False
    )


def _fit(chosen: Settings, data: Data, folder: RunFolder, console: Console) -> train.FitResult:
    algorithm, form = ALGORITHMS[chosen.algorithm].algorithm, form_of(chosen)
    validation_key = jax.random.fold_in(jax.random.key(chosen.seed), 2)

    def validate(learner: Any) -> dict[str, evaluate.Interval]:
        module = as_tested(chosen, learner, data.pools.get("train"))
        scores = form.scores(algorithm, module, data.val, validation_key, num_tasks=chosen.validation_tasks)
        return {form.score: evaluate.student_t(scores[form.score])}

    display = Display(console, steps=chosen.steps, form=form)

    def listen(event: train.Event) -> None:
        _log(folder, event)
        display.event(event)

    mesh = task_mesh(chosen.devices) if chosen.devices > 1 else None
    with (
        train.Checkpoints(folder.checkpoints, config=dataclasses.asdict(chosen)) as checkpoints,
        display,
    ):
        folder.rewind(checkpoints.latest_step or 0)
        # A resumed run has its learner in its own folder.
        first = first_learner(chosen, data) if checkpoints.latest_step is None else None
        optimiser, state = initial_state(chosen, data, first)
        return train.fit(
            algorithm,
            optimiser,
            state,
            data.train,
            num_steps=chosen.steps,
            meta_batch=chosen.meta_batch,
            chunk=ALGORITHMS[chosen.algorithm].chunk,
            validate=validate,
            validate_every=chosen.validate_every,
            best=form.best,
            checkpoints=checkpoints,
            on_event=listen,
            mesh=mesh,
            anneal=ALGORITHMS[chosen.algorithm].anneal(chosen),
            rule=ALGORITHMS[chosen.algorithm].rule(),
        )


def _log(folder: RunFolder, event: train.Event) -> None:
    if isinstance(event, train.Progress):
        folder.log(event="progress", **event._asdict())
    elif isinstance(event, train.Validated):
        interval = next(iter(event.result.values()))
        ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        folder.log(event="validated", step=event.step, is_best=event.is_best, **ends)


def finish(chosen: Settings, data: Data, folder: RunFolder, learner: Any, console: Console, started: float) -> None:
    """Test the learner, draw the pictures and write the report."""
    key = jax.random.fold_in(jax.random.key(chosen.seed), 3)
    assessment = assess(chosen, data, learner, key)
    by_steps = by_inner_steps(chosen, data, learner, key)
    assessment = dataclasses.replace(assessment, series=[*assessment.series, *by_steps])
    log_test(folder, assessment)
    seconds = time.perf_counter() - started
    # The numbers first: a picture that cannot be drawn must not cost them.
    shared = {"about": data.about, "seconds": seconds, "command": as_command(chosen)}
    page = functools.partial(report, chosen, assessment, **shared)
    write(folder.report, page(pictures=[]))
    show_table(console, chosen, assessment, about=data.about)
    write(folder.report, page(pictures=draw(chosen, data, folder, learner, key, assessment)))
    console.print(f"report: {folder.report}", highlight=False)


def log_test(folder: RunFolder, assessment: Assessment) -> None:
    """The numbers of the final test into the log."""
    folder.log(event="test", **as_record(assessment))
    for series in assessment.series:
        ends = [{"mean": i.mean, "low": i.low, "high": i.high} for i in series.intervals]
        folder.log(event=series.name, scores=ends)


def draw(
    chosen: Settings, data: Data, folder: RunFolder, learner: Any, key: Any, assessment: Assessment
) -> list[tuple[str, str]]:
    """The pictures of a run, as (title, file)."""
    form, algorithm = form_of(chosen), ALGORITHMS[chosen.algorithm].algorithm
    axis = {"score": form.score_in_words, "is_share": form.is_share}
    _pictures.learning_curve(folder.records(), folder.path / "learning-curve.png", **axis)
    pictures = [("Learning curve", "learning-curve.png")]
    module = as_tested(chosen, learner, data.pools.get("train"))
    pictures += form.pictures(chosen, algorithm, module, data.test, key, folder.path)
    for series in assessment.series:
        file = f"{series.name.replace(' ', '-')}.png"
        _pictures.series(series.intervals, folder.path / file, name=series.name, first=series.first, **axis)
        pictures.append((f"Score against {series.name}", file))
    return pictures
