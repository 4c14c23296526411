"""`metakit compare`: runs side by side."""

import dataclasses
import pathlib
import time
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from metakit import experiments

from ._parse import parse
from ._usage import say


@dataclasses.dataclass(frozen=True)
class Compare:
    """Set finished runs side by side, with paired differences where they share their test tasks."""

    runs: Annotated[tyro.conf.Positional[tuple[pathlib.Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders."""
    out: pathlib.Path | None = None
    """Folder for comparison.md, .csv and .png; by default runs/comparison-TIME."""


def run(words: list[str], console: Console) -> int:
    """Compare and write; returns the exit status."""
    options = parse(Compare, words, "compare")
    out = options.out or pathlib.Path("runs") / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}"
    result = experiments.compare(options.runs, out)
    console.print(comparison_table(result))
    say(console, f"comparison: {out / 'comparison.md'}")
    return 0


def comparison_table(result: experiments.Comparison) -> Table:
    """A comparison for a terminal."""
    head, *rows = result.table()
    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table
