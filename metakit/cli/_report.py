"""`report.md` and the closing table."""

import dataclasses
import importlib.metadata
import platform
import shlex
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from ._algorithms import ALGORITHMS, form_of
from ._assess import Assessment
from ._config import Settings, Train, option, settings
from ._display import clock
from ._forms import AbstractForm, Series, plain
from ._presets import default_data, preset

_POLICIES = {
    "transductive": "transductive: batch norm uses the statistics of the query batch, so queries may help each other",
    "joint": "joint (transductive): batch norm uses the statistics of support and query together",
    "inductive": "inductive: batch norm uses the support set's statistics, so no query sees another",
    "one_by_one": "inductive: each query joins the support set's batch alone, so no query sees another",
}


def show_table(console: Console, chosen: Settings, assessment: Assessment, *, about: str) -> None:
    """The result as a table on the terminal."""
    show = form_of(chosen).show
    table = Table(title=f"Test: {tasks_in_words(chosen)}; {about}")
    for heading in ("", "mean, 95 % interval", "meta-trained minus this (paired)"):
        table.add_column(heading)
    for row in assessment.rows:
        table.add_row(row.name, show(row.score), "" if row.advantage is None else show(row.advantage))
    console.print(table)


def tasks_in_words(chosen: Settings) -> str:
    return f"{chosen.test_tasks} tasks, {form_of(chosen).in_words(chosen)}"


def report(
    chosen: Settings,
    assessment: Assessment,
    *,
    about: str,
    pictures: list[tuple[str, str]],
    seconds: float,
    command: str,
) -> str:
    """The run as a page of Markdown."""
    form, known = form_of(chosen), ALGORITHMS[chosen.algorithm]
    score = form.score_in_words + (" (lower is better)" if form.best == "lowest" else "")
    lines = [
        f"# {known.about} on {chosen.data}",
        "",
        f"- Data: {about}",
        f"- Test: {tasks_in_words(chosen)}",
        f"- Batch norm: {_policy(chosen)}",
    ]
    if chosen.trainval:
        lines.append("- Learner: the last one, since the classes of validation were trained on")
    if chosen.start_from is not None:
        lines.append(f"- Start: the learner of {chosen.start_from}")
    if "inner_steps" in known.uses:
        lines.append(f"- Inner steps: {chosen.inner_steps} in training, {chosen.test_inner_steps} in the test")
    lines += [
        f"- Time: {clock(seconds)} minutes, compilation included",
        "",
        f"| learner | {score}, 95 % interval (Student t) | bootstrap interval | meta-trained minus this, paired |",
        "|---|---|---|---|",
    ]
    factor, digits = (100, 2) if form.is_share else (1, 4)
    for row in assessment.rows:
        ends = f"{factor * row.bootstrap.low:.{digits}f} to {factor * row.bootstrap.high:.{digits}f}"
        lines.append(
            f"| {row.name} | {form.show(row.score)} | {ends} | "
            f"{'' if row.advantage is None else form.show(row.advantage)} |"
        )
    if form.best == "lowest":  # a mean hides, or is made by, the few tasks on which adaptation diverges
        lines += ["", "Medians: " + "; ".join(f"{row.name} {row.median:.4f}" for row in assessment.rows) + "."]
    spoilt = {row.name: row.score.num_nonfinite for row in assessment.rows if row.score.num_nonfinite}
    lines += [f"\n{name} diverged on {count} tasks." for name, count in spoilt.items()]
    if assessment.nll is not None:
        lines += [
            "",
            f"Negative log-likelihood {plain(assessment.nll)} nats; expected calibration error "
            f"{assessment.calibration_error:.4f} (15 bins, pooled over all test queries).",
        ]
    for series in assessment.series:
        lines += _as_table(form, series)
    for title, file in pictures:
        lines += ["", f"## {title}", f"![{title}]({file})"]
    return "\n".join([*lines, "", "## Made with", *_made_with(chosen, command), ""])


def _policy(chosen: Settings) -> str:
    entry = ALGORITHMS[chosen.algorithm]
    if "norm_policy" not in entry.uses:
        return entry.norm
    return _POLICIES[chosen.norm_policy] if chosen.has_classes else "none in this network"


def _as_table(form: AbstractForm, series: Series) -> list[str]:
    counts = range(series.first, series.first + len(series.intervals))
    return [
        "",
        f"| {series.name} | " + " | ".join(map(str, counts)) + " |",
        "|---" * (len(counts) + 1) + "|",
        "| meta-trained | " + " | ".join(map(form.show, series.intervals)) + " |",
    ]


def as_command(chosen: Settings) -> str:
    """The command that makes the same run: what differs from the preset."""
    smoke = ["--smoke"] if chosen.smoke else []
    given = Train(chosen.algorithm, chosen.data, smoke=chosen.smoke)
    usual = settings(given, chosen.data, preset(chosen.algorithm, chosen.data))
    words = ["metakit", "train", chosen.algorithm]
    if chosen.data != default_data(chosen.algorithm):
        words += ["--data", chosen.data]
    for field in dataclasses.fields(Settings):
        value = getattr(chosen, field.name)
        # How many cores there are is not the preset's to say.
        if value != getattr(usual, field.name) or (field.name == "devices" and value > 1):
            words += [option(field.name)] if value is True else [option(field.name), str(value)]
    return shlex.join([*words, *smoke])


def _made_with(chosen: Settings, command: str) -> list[str]:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("metakit", "jax", "equinox", "optax")
    )
    device = jax.devices()[0]
    return [
        f"- `{command}`",
        f"- seed {chosen.seed}; every setting is in `config.json`",
        f"- {versions}; Python {platform.python_version()}; {jax.device_count()} x {device.device_kind}",
    ]


def as_record(assessment: Assessment) -> dict[str, Any]:
    """The same numbers for `metrics.jsonl`."""
    rows = {
        row.name: {"mean": row.score.mean, "low": row.score.low, "high": row.score.high, "std": row.score.std}
        for row in assessment.rows
    }
    nll = None if assessment.nll is None else assessment.nll.mean
    return {"scores": rows, "nll": nll, "calibration_error": assessment.calibration_error}
