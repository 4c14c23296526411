"""For the site: doctest examples in docstrings become code blocks."""

from typing import Any

import griffe


def fenced(text: str) -> str:
    """Put each run of lines that starts with `>>>` (up to a blank line) into a code fence."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        starts = line.lstrip().startswith(">>> ")
        if starts and not inside:
            lines.append(" " * (len(line) - len(line.lstrip())) + "```python")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


class DoctestBlocks(griffe.Extension):
    """Rewrites docstrings as griffe loads them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
