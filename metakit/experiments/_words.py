"""How a report speaks of an experiment."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Words:
    """The sentences of a report that numbers cannot say. All may be left out.

    **Arguments:**

    - `title`: what was trained on what, such as `"MAML on glyphs"`.
    - `data`: the data, its split and its fingerprint.
    - `task`: one test task, such as `"5-way 1-shot, 5 queries a class"`.
    - `norm`: whose statistics batch norm uses.
    - `notes`: further lines.

    >>> Words(title="a ridge head on glyphs").title
    'a ridge head on glyphs'
    """

    title: str = ""
    data: str = ""
    task: str = ""
    norm: str = ""
    notes: tuple[str, ...] = ()
