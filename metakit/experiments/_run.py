"""From an experiment to its report."""

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from metakit import evaluate, train
from metakit._wording import describe
from metakit.sharding import task_mesh

from . import plots
from ._assess import Assessment, assess, try_out
from ._display import Display
from ._events import Reported, RunEvent, Started, Tested, Testing
from ._experiment import Experiment
from ._folder import RunFolder, room_for, write, write_arrays
from ._listeners import Audience, Listener, Log
from ._loaded import Run, initial_state, read_run, save_arrays
from ._pictures import Picture, Shown, fitting_pictures
from ._record import as_record, assessment_as_record, data_as_record, identity, tasks_fingerprint
from ._report import report


def run(
    experiment: Experiment,
    folder: str | os.PathLike[str],
    *,
    listeners: Sequence[Listener] = (),
    quiet: bool = False,
) -> Run:
    """Train, validate, test and report an experiment in a folder.

    A folder that holds the same experiment, stopped half-way, is continued bit for bit; a finished one is returned as
    it is and never written over. The folder then holds the log, checkpoints, `report.md` with its pictures, and the
    score of every test task.

    **Arguments:**

    - `experiment`: what to run.
    - `folder`: a new or empty folder, or that of the same experiment.
    - `listeners`: functions that are called with each event: those of `mk.train.fit`, and `mk.experiments.Started`,
      `Testing`, `Tested` and `Reported`. One that raises is left out from then on, and the run goes on. A listener
      with a `close()` is closed when the run ends, also by an error or Ctrl-C. See `TensorBoard`, `WeightsAndBiases`.
    - `quiet`: show nothing; default `False`: progress and the closing table, on a terminal or in a notebook.

    **Returns:** a `Run`. After Ctrl-C the steps at hand are finished and saved, and the run says `finished=False`.

    **Raises:** `RunFolderError` for a folder that holds something else; `mk.train.ConfigChangedError` for one of
    another experiment; `mk.train.NonFiniteLossError` and `mk.train.DiskFullError` as `mk.train.fit`; and whatever the
    learner's test raises, which is tried out before anything is written.

    >>> import jax, optax, tempfile, metakit as mk
    >>> lines = mk.tasks.LinearRegression(shot=5, queries=5)
    >>> network = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> learner = mk.maml.MAML(network, inner=mk.inner.SGD(0.01), num_steps=1, loss=mk.losses.squared_error)
    >>> error = mk.experiments.mean_squared_error()
    >>> few = {"steps": 2, "test_tasks": 2, "pictures": ()}
    >>> experiment = mk.Experiment(mk.maml, learner, optax.adam(1e-3), lines, lines, error, **few)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mk.experiments.run(experiment, folder, quiet=True).finished
    True
    """
    if not isinstance(experiment, Experiment):
        raise TypeError(f"experiment must be an mk.Experiment, got {describe(experiment)}.")
    place = RunFolder(folder)
    begin(experiment, place)
    if place.finished:
        return read_run(experiment, place)
    audience = Audience([*listeners, *([] if quiet else [Display()])])
    try:
        return _go(experiment, place, audience)
    finally:
        audience.close()


def begin(experiment: Experiment, place: RunFolder) -> None:
    """Make the folder of a run, or see that it holds this one."""
    if place.path.exists() and (not place.path.is_dir() or any(place.path.iterdir())):
        _check_same(experiment, place)
    else:
        check_test(experiment)
        _create(experiment, place)


class UnfitError(ValueError):
    """A learner cannot take the test tasks of its experiment.

    **Arguments:** the sentence in which the learner refused them.
    """


def check_test(experiment: Experiment) -> None:
    """Trace the test; an `UnfitError` where the learner refuses its tasks."""
    try:
        try_out(experiment)
    except (ValueError, TypeError) as error:
        raise UnfitError(str(error)) from error


def _create(experiment: Experiment, place: RunFolder) -> None:
    with room_for(place.path):
        place.path.mkdir(parents=True, exist_ok=True)
    if experiment.data is not None:
        write(place.classes, json.dumps(data_as_record(experiment.data)) + "\n")
    # Last: a folder with a record is a run.
    write(place.record, json.dumps(as_record(experiment), indent=2) + "\n")


def _check_same(experiment: Experiment, place: RunFolder) -> None:
    """Refuse to go on with another experiment than the folder's."""
    recorded, ours = place.read_record(), json.loads(json.dumps(identity(experiment)))
    theirs = {name: recorded[name] for name in ours}
    changes = {}
    for name, value in _flat(ours).items():
        if _flat(theirs).get(name) != value:
            changes[name] = (_flat(theirs).get(name), value)
    if changes:
        raise train.ConfigChangedError(str(place.path), changes)


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": identity["recipe"], **identity["options"]}


def _go(experiment: Experiment, place: RunFolder, audience: Audience) -> Run:
    started, log = time.perf_counter(), Log(place)

    def tell(event: RunEvent) -> None:
        log(event)
        audience(event)

    tell(Started(experiment, place.path))
    result = _fit(experiment, place, tell)
    if result.interrupted:
        return read_run(experiment, place)
    assert result.state is not None
    trained = result.state.learner if experiment.tested == "last" else result.best_learner
    learner = experiment.as_tested(trained)
    _finish(experiment, place, learner, tell, started)
    return read_run(experiment, place)


def _fit(experiment: Experiment, place: RunFolder, tell: Callable[[RunEvent], None]) -> train.FitResult:
    config = identity(experiment)
    with train.Checkpoints(place.checkpoints, config=config) as checkpoints:
        place.rewind(checkpoints.latest_step or 0)
        judged: dict[str, Any] = {}
        if experiment.val is not None:
            judged = {"validate": validation(experiment), "best": experiment.scores.best}
            judged["validate_every"] = experiment.validate_every
        return train.fit(
            experiment.algorithm,
            experiment.optimiser,
            initial_state(experiment),
            experiment.train,
            num_steps=experiment.steps,
            meta_batch=experiment.meta_batch,
            chunk=experiment.chunk,
            checkpoints=checkpoints,
            on_event=tell,
            mesh=task_mesh(experiment.devices) if experiment.devices > 1 else None,
            anneal=experiment.anneal,
            rule=experiment.rule,
            **judged,
        )


def validation(experiment: Experiment) -> Callable[[Any], dict[str, evaluate.Interval]]:
    """A function from a learner to its validation score."""
    key = jax.random.fold_in(jax.random.key(experiment.seed), 2)
    name = experiment.scores.name

    def validate(learner: Any) -> dict[str, evaluate.Interval]:
        module, count = experiment.as_tested(learner), experiment.validation_tasks
        scores = experiment.scores.of(experiment.algorithm, module, experiment.val, key, num_tasks=count)
        return {name: evaluate.student_t(scores[name])}

    return validate


def test_key(experiment: Experiment) -> jax.Array:
    """The key of the stream of test tasks."""
    return jax.random.fold_in(jax.random.key(experiment.seed), 3)


def _finish(
    experiment: Experiment, place: RunFolder, learner: Any, tell: Callable[[RunEvent], None], started: float
) -> None:
    """Test the learner, draw the pictures and write the report."""
    key = test_key(experiment)
    assessment = assess(experiment, learner, key, tell=lambda *words: tell(Testing(*words)))
    seconds = time.perf_counter() - started
    command = experiment.origin.command if experiment.origin is not None else None
    shared = {"seconds": seconds, "command": command}
    # The numbers first: a picture that cannot be drawn must not cost them.
    write(place.report, report(experiment, assessment, pictures=[], **shared))
    tell(Tested(experiment, assessment))
    save_arrays(place.learner, learner)
    write_arrays(place.scores, assessment.tasks)
    pictures = draw(experiment, place, learner, key, assessment)
    write(place.report, report(experiment, assessment, pictures=pictures, **shared))
    record = assessment_as_record(assessment)
    test = {"tasks": experiment.test_tasks, "fingerprint": tasks_fingerprint(experiment, key), "seconds": seconds}
    # Last: a run with this file is finished.
    write(place.test, json.dumps({**test, **record}, indent=2) + "\n")
    tell(Reported(place.report))


def draw(
    experiment: Experiment, place: RunFolder, learner: Any, key: Any, assessment: Assessment
) -> list[tuple[str, str]]:
    """The pictures of a run, as (title, file)."""
    scores = experiment.scores
    axis = {"score": scores.in_words, "is_share": scores.is_share}
    plots.learning_curve(place.records(), place.path / "learning-curve.png", **axis)
    pictures = [("Learning curve", "learning-curve.png")]
    ink = experiment.data is not None and experiment.data.ink
    shown = Shown(experiment.algorithm, learner, experiment.test, key, place.path, ink)
    painters: Sequence[Picture] = fitting_pictures(experiment) if experiment.pictures is None else experiment.pictures
    for painter in painters:
        pictures += painter(shown)
    for series in assessment.series:
        file = f"{series.name.replace(' ', '-')}.png"
        plots.series(series.intervals, place.path / file, name=series.name, first=series.first, **axis)
        pictures.append((f"Score against {series.name}", file))
    return pictures
