"""`report.md` and the closing table."""

import importlib.metadata
import platform
import shlex
import sys
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from metakit.evaluate import Interval

from ._assess import Assessment
from ._config import Settings
from ._display import clock, percent, plain
from ._presets import ALGORITHMS

_POLICIES = {
    "transductive": "transductive: batch norm uses the statistics of the query batch, so queries may help each other",
    "joint": "joint (transductive): batch norm uses the statistics of support and query together",
    "inductive": "inductive: batch norm uses the support set's statistics, so no query sees another",
}


def show_table(console: Console, settings: Settings, assessment: Assessment, *, about: str) -> None:
    """The result as a table on the terminal."""
    show = plain if settings.regression else percent
    table = Table(title=f"Test: {tasks_in_words(settings)}; {about}")
    for heading in ("", "mean, 95 % interval", "meta-trained minus this (paired)"):
        table.add_column(heading)
    for row in assessment.rows:
        table.add_row(row.name, show(row.score), "" if row.advantage is None else show(row.advantage))
    console.print(table)


def tasks_in_words(settings: Settings) -> str:
    if settings.regression:
        return f"{settings.test_tasks} tasks, {settings.shot} support and {settings.test_queries} query points"
    kind = f"{settings.test_way}-way {settings.shot}-shot"
    return f"{settings.test_tasks} tasks, {kind}, {settings.test_queries} queries a class"


def report(
    settings: Settings,
    assessment: Assessment,
    steps: list[Interval],
    *,
    about: str,
    pictures: list[tuple[str, str]],
    seconds: float,
) -> str:
    """The run as a page of Markdown."""
    show = plain if settings.regression else percent
    score = "mean squared error (lower is better)" if settings.regression else "accuracy"
    lines = [
        f"# {ALGORITHMS[settings.algorithm].about} on {settings.data}",
        "",
        f"- Data: {about}",
        f"- Test: {tasks_in_words(settings)}",
        f"- Batch norm: {'none in this network' if settings.regression else _POLICIES[settings.norm_policy]}",
    ]
    if ALGORITHMS[settings.algorithm].gradient_based:
        lines.append(f"- Inner steps: {settings.inner_steps} in training, {settings.test_inner_steps} in the test")
    lines += [
        f"- Time: {clock(seconds)} minutes, compilation included",
        "",
        f"| learner | {score}, 95 % interval (Student t) | bootstrap interval | meta-trained minus this, paired |",
        "|---|---|---|---|",
    ]
    factor, digits = (1, 4) if settings.regression else (100, 2)
    for row in assessment.rows:
        ends = f"{factor * row.bootstrap.low:.{digits}f} to {factor * row.bootstrap.high:.{digits}f}"
        lines.append(
            f"| {row.name} | {show(row.score)} | {ends} | {'' if row.advantage is None else show(row.advantage)} |"
        )
    spoilt = {row.name: row.score.num_nonfinite for row in assessment.rows if row.score.num_nonfinite}
    lines += [f"\n{name} diverged on {count} tasks." for name, count in spoilt.items()]
    if assessment.nll is not None:
        lines += [
            "",
            f"Negative log-likelihood {plain(assessment.nll)} nats; expected calibration error "
            f"{assessment.calibration_error:.4f} (15 bins, pooled over all test queries).",
        ]
    if steps:
        lines += [
            "",
            "| inner steps | " + " | ".join(map(str, range(len(steps)))) + " |",
            "|---" * (len(steps) + 1) + "|",
        ]
        lines.append("| meta-trained | " + " | ".join(map(show, steps)) + " |")
    for title, file in pictures:
        lines += ["", f"## {title}", f"![{title}]({file})"]
    return "\n".join([*lines, "", "## Made with", *_made_with(settings), ""])


def _made_with(settings: Settings) -> list[str]:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("metakit", "jax", "equinox", "optax")
    )
    device = jax.devices()[0]
    return [
        f"- `metakit {shlex.join(sys.argv[1:])}`",
        f"- seed {settings.seed}; every setting is in `config.json`",
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
