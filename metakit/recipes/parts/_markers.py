"""What an option of a recipe is to `metakit evaluate` and to `--start-from`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class InTest:
    """Marks an option that an evaluation may choose anew, under the name that it has there."""

    name: str


@dataclasses.dataclass(frozen=True)
class Held:
    """Marks an option whose number the learner holds: a start from another run must have the same."""


HELD = Held()
