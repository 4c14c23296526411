"""`metakit evaluate`: the learner that a run was tested with, on its own test tasks or on others."""

import dataclasses
import shlex
import sys
import time
from typing import Any

import jax
from rich.console import Console

from ._algorithms import ALGORITHMS, build_learner
from ._assess import assess, try_out
from ._config import Evaluate, Settings, UsageError, check_numbers, option
from ._data import Data, load
from ._presets import unused_options
from ._refusals import as_usage
from ._report import as_record, report, show_table
from ._run_folder import open_run, write
from ._start import trained_learner


def run(options: Evaluate, console: Console) -> int:
    """Evaluate and write the result into the run folder; returns the exit status."""
    folder, trained = open_run(options.run)
    chosen = _overridden(trained, options)
    data = load(chosen, dealt_by=trained)
    learner = _as_chosen(trained, chosen, data, trained_learner(folder, trained, data))
    with as_usage():
        try_out(chosen, data, learner)
    console.print(f"{ALGORITHMS[chosen.algorithm].about} on {data.about}", highlight=False)

    started = time.perf_counter()
    assessment = assess(chosen, data, learner, jax.random.fold_in(jax.random.key(options.seed), 3))
    name = f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}"
    seconds = time.perf_counter() - started
    command = shlex.join(["metakit", *sys.argv[1:]])
    page = report(chosen, assessment, about=data.about, pictures=[], seconds=seconds, command=command)
    write(folder.path / f"{name}.md", page)
    folder.log(event="evaluation", file=f"{name}.md", **as_record(assessment))
    show_table(console, chosen, assessment, about=data.about)
    console.print(f"report: {folder.path / name}.md", highlight=False)
    return 0


def _as_chosen(trained: Settings, chosen: Settings, data: Data, learner: Any) -> Any:
    """The learner under another policy: its numbers in a learner that is built with it."""
    if chosen.norm_policy == trained.norm_policy:
        return learner
    other = dataclasses.replace(trained, norm_policy=chosen.norm_policy)
    with as_usage():
        built = build_learner(other, data.pools.get("train"), jax.random.key(trained.seed))
    return jax.tree.unflatten(jax.tree.structure(built), jax.tree.leaves(learner))


# Options by the settings that they change.
_OPTIONS = {
    "test_way": "way",
    "test_shot": "shot",
    "test_queries": "queries",
    "test_inner_steps": "inner_steps",
    "norm_policy": "norm_policy",
    "test_tasks": "num_tasks",
    "path": "path",
}


def _overridden(trained: Settings, options: Evaluate) -> Settings:
    given = {name: getattr(options, own) for name, own in _OPTIONS.items()}
    changes = {name: value for name, value in given.items() if value is not None}
    for name, why in unused_options(trained.algorithm, trained.data).items():
        if name in changes:
            raise UsageError(f"{option(_OPTIONS[name])} would not be used: {why}. Leave it out.")
    way = changes.get("test_way", trained.test_way)
    if ALGORITHMS[trained.algorithm].fixed_way and trained.has_classes and way != trained.way:
        raise UsageError(
            f"--way {way}: {trained.algorithm} has a head for {trained.way} classes and can be tested on "
            "no other number."
        )
    if "path" in changes:
        changes["path"] = str(changes["path"])
    chosen = dataclasses.replace(trained, **changes)
    check_numbers(dataclasses.asdict(chosen), names=_OPTIONS)
    if options.seed < 0:
        raise UsageError(f"--seed must be at least 0, got {options.seed}.")
    return chosen
