"""A trained learner, tested again on other tasks."""

import json
import time
from typing import Any

import jax
from rich.console import Console

from ._assess import Assessment, assess
from ._display import Display
from ._events import Reported, Tested, Testing
from ._experiment import Experiment
from ._folder import RunFolder, write, write_arrays
from ._record import assessment_as_record, tasks_fingerprint
from ._report import report
from ._run import check_test


def evaluate_again(
    experiment: Experiment,
    learner: Any,
    place: RunFolder,
    *,
    seed: int,
    command: str | None = None,
    console: Console | None = None,
) -> Assessment:
    """Test a learner and its baselines, and write the result beside the run's own report.

    **Arguments:** `experiment`, whose test tasks are taken; `learner`, as it is tested; `place`, the run's folder;
    `seed` of the tasks; `command` and `console` for the report and for progress.

    **Returns:** an `Assessment`; `evaluation-TIME.md`, `.json` and `.npz` hold it.

    **Raises:** `UnfitError` where the learner refuses the tasks.

    >>> callable(evaluate_again)  # as 'metakit evaluate' calls it
    True
    """
    check_test(experiment)
    show, started = Display(console), time.perf_counter()
    key = jax.random.fold_in(jax.random.key(seed), 3)
    try:
        assessment = assess(experiment, learner, key, tell=lambda *words: show(Testing(*words)))
    finally:
        show.close()
    name = f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}"
    record = {"tasks": experiment.test_tasks, "fingerprint": tasks_fingerprint(experiment, key)}
    record |= assessment_as_record(assessment)
    page = report(experiment, assessment, pictures=[], seconds=time.perf_counter() - started, command=command)
    write(place.path / f"{name}.md", page)
    write(place.path / f"{name}.json", json.dumps(record, indent=2) + "\n")
    write_arrays(place.path / f"{name}.npz", assessment.tasks)
    series = record.pop("series")
    place.log(event="evaluation", file=f"{name}.md", series=series, **record)
    show(Tested(experiment, assessment))
    show(Reported(place.path / f"{name}.md"))
    return assessment
