"""`metakit list`: the recipes and what they were published with."""

import dataclasses

from rich.console import Console
from rich.table import Column, Table

from metakit import recipes

from ._parse import parse

_SHOWN = ("way", "shot", "queries", "steps", "meta_batch", "rate", "inner_steps", "norm_policy")


@dataclasses.dataclass(frozen=True)
class List:
    """Show the recipes and their published options."""


def run(words: list[str], console: Console) -> int:
    """Print two tables; returns the exit status."""
    parse(List, words, "list")
    found = [recipes.find(name) for name in recipes.names()]
    about = _table("recipe", "what it is")
    for one in found:
        about.add_row(one.name, one.about)
    published = _table(
        Column("recipe and data", no_wrap=True),
        *(Column(name.replace("_", "\n"), no_wrap=True, justify="right") for name in _SHOWN),
    )
    for one in found:
        for data in one.data:
            if data != "folder":  # as glyphs
                defaults = {name: str(option.default) for name, option in one.options(data).items()}
                published.add_row(f"{one.name} {data}", *(defaults.get(name, "") for name in _SHOWN))
    console.print(about)
    console.print()
    console.print(published)
    return 0


def _table(*columns: Column | str) -> Table:
    """Without borders, so that every number fits into 80 columns."""
    return Table(*columns, box=None, pad_edge=False, collapse_padding=True, padding=(0, 1))
