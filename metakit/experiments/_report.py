"""`report.md` and the closing table."""

from collections.abc import Sequence

import equinox as eqx
import jax
from rich.table import Table

from metakit._hyperparameter import trainable

from ._assess import Assessment, Row
from ._experiment import Experiment
from ._record import versions
from ._scores import AbstractScores, Series, plain

# Below this difference, in points, a score with lone queries counts as the same.
_SAME = 0.005


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def result_table(experiment: Experiment, assessment: Assessment) -> Table:
    """The result as a table for a terminal."""
    show = experiment.scores.show
    words = "; ".join(filter(None, [tasks_in_words(experiment), experiment.words.data]))
    table = Table(title=f"Test: {words}")
    for heading in ("", "mean, 95 % interval", "meta-trained minus this (paired)"):
        table.add_column(heading)
    for row in assessment.rows:
        table.add_row(row.name, show(row.score), "" if row.advantage is None else show(row.advantage))
    if assessment.alone is not None and assessment.sharing is not None:
        table.add_row("meta-trained, each query alone", show(assessment.alone), show(assessment.sharing))
    return table


def tasks_in_words(experiment: Experiment) -> str:
    return ", ".join(filter(None, [f"{experiment.test_tasks} tasks", experiment.words.task]))


def warnings(experiment: Experiment, assessment: Assessment) -> list[str]:
    """What a reader of the table must not overlook."""
    found, scores = [], experiment.scores
    sign = 1 if scores.best == "highest" else -1
    for row in assessment.rows:
        if row.advantage is None or row.name.startswith("oracle"):
            continue
        ends = (sign * row.advantage.low, sign * row.advantage.high)
        if min(ends) <= 0:
            worse = "is worse than" if max(ends) < 0 else "is not better beyond doubt than"
            found.append(
                f"The meta-trained learner {worse} the baseline '{row.name}' (difference "
                f"{scores.show(row.advantage)}). Train longer (--steps), or use the baseline."
            )
    sharing = assessment.sharing
    if sharing is not None and (sharing.low > 0 or sharing.high < 0) and abs(sharing.mean) > _SAME:
        assert assessment.alone is not None
        found.append(
            f"The score depends on how many queries are asked at once: each query alone gives "
            f"{scores.show(assessment.alone)}. Its batch norm uses the statistics of the queries. Where yours come one "
            "at a time, that is your score; train with another --norm-policy, such as inductive, to mend it."
        )
    spoilt = {row.name: row.score.num_nonfinite for row in assessment.rows if row.score.num_nonfinite}
    return found + [f"{name} diverged on {count} tasks." for name, count in spoilt.items()]


def report(
    experiment: Experiment,
    assessment: Assessment,
    *,
    pictures: Sequence[tuple[str, str]],
    seconds: float,
    command: str | None,
) -> str:
    """The run as a page of Markdown."""
    scores, words = experiment.scores, experiment.words
    score = scores.in_words + (" (lower is better)" if scores.best == "lowest" else "")
    lines = [f"# {words.title or 'An experiment'}", ""]
    facts = {
        "Data": words.data,
        "Examples": "" if experiment.data is None else " x ".join(map(str, experiment.data.shape)),
        "Learner": _learner_in_words(experiment),
        "Test": tasks_in_words(experiment),
        "Batch norm": words.norm,
    }
    lines += [f"- {name}: {fact}" for name, fact in facts.items() if fact]
    lines += [f"- {note}" for note in words.notes]
    if experiment.start_from is not None:
        lines.append(f"- Start: the learner of {experiment.start_from}")
    lines += [
        f"- Time: {clock(seconds)} minutes, compilation included",
        "",
        f"| learner | {score}, 95 % interval (Student t) | bootstrap interval | meta-trained minus this, paired |",
        "|---|---|---|---|",
        *(_line(scores, row) for row in assessment.rows),
    ]
    if assessment.alone is not None and assessment.sharing is not None:
        alone, sharing = scores.show(assessment.alone), scores.show(assessment.sharing)
        lines.append(f"| meta-trained, each query alone | {alone} | | {sharing} |")
    if scores.best == "lowest":  # a mean hides, or is made by, the few tasks on which adaptation diverges
        lines += ["", "Medians: " + "; ".join(f"{row.name} {row.median:.4f}" for row in assessment.rows) + "."]
    for warning in warnings(experiment, assessment):
        lines += ["", f"**Note.** {warning}"]
    if assessment.nll is not None:
        lines += [
            "",
            f"Negative log-likelihood {plain(assessment.nll)} nats; expected calibration error "
            f"{assessment.calibration_error:.4f} (15 bins, pooled over all test queries).",
        ]
    for series in assessment.series:
        lines += _as_table(scores, series)
    for title, file in pictures:
        lines += ["", f"## {title}", f"![{title}]({file})"]
    return "\n".join([*lines, "", "## Made with", *_made_with(experiment, command), ""])


def _learner_in_words(experiment: Experiment) -> str:
    """What it is, with its network where it has one, and how many numbers it holds."""
    learner = experiment.learner
    networks = (getattr(learner, name, None) for name in ("model", "embed", "policy", "base"))
    network = next((f", {type(one).__name__}" for one in networks if one is not None), "")
    moved = eqx.filter(learner, trainable(learner))
    held, trained = (
        sum(leaf.size for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)) for tree in (learner, moved)
    )
    return f"{type(learner).__name__}{network}; {held:,} numbers, of which {trained:,} are trained"


def _line(scores: AbstractScores, row: Row) -> str:
    factor, digits = (100, 2) if scores.is_share else (1, 4)
    between = f"{factor * row.bootstrap.low:.{digits}f} to {factor * row.bootstrap.high:.{digits}f}"
    advantage = "" if row.advantage is None else scores.show(row.advantage)
    return f"| {row.name} | {scores.show(row.score)} | {between} | {advantage} |"


def _as_table(scores: AbstractScores, series: Series) -> list[str]:
    counts = range(series.first, series.first + len(series.intervals))
    return [
        "",
        f"| {series.name} | " + " | ".join(map(str, counts)) + " |",
        "|---" * (len(counts) + 1) + "|",
        "| meta-trained | " + " | ".join(map(scores.show, series.intervals)) + " |",
    ]


def _made_with(experiment: Experiment, command: str | None) -> list[str]:
    made_by = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")
    device = jax.devices()[0]
    return [
        f"- `{command}`" if command else "- an experiment made in Python",
        f"- seed {experiment.seed}; every option is in `run.json`, the classes of each part in `data.json`",
        f"- {made_by}; Python {versions()['python']}; {jax.device_count()} x {device.device_kind}",
    ]
