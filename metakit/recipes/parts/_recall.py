"""The classes that a run knows: recorded, and found again by name."""

import dataclasses
from typing import Literal

import numpy as np

from metakit import tasks
from metakit.experiments import DataRecord
from metakit.tasks import ImagePool

from ._option_error import OptionError

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_IN_WORDS: dict[Part, str] = {"train": "training", "val": "validation", "test": "test"}
_MIRRORED = "/mirrored"


@dataclasses.dataclass(frozen=True)
class Recall:
    """What a run knows of its classes, for who loads the data again.

    - `blank`: give pools of the recorded shapes without their pictures, which need not be at hand then.
    - `evaluation`: of a run, whose options are named without `test-` and which validates nothing.
    - `test_on`: the recorded `"test"` classes, or those that came later (`"new"`).
    """

    record: DataRecord
    blank: bool = False
    evaluation: bool = False
    test_on: Literal["test", "new"] = "test"


def record_of(pools: dict[Part, ImagePool], recall: Recall | None, *, ink: bool) -> DataRecord:
    """What a run remembers of its pictures."""
    shape = pools["train"].images.shape[2:]
    return DataRecord(
        {part: pool.names for part, pool in pools.items()},
        {part: tasks.fingerprint(pool) for part, pool in pools.items()},
        tuple(shape),
        ink,
        {part: pool.images.shape[1] for part, pool in pools.items()},
        () if recall is None else recall.record.seen,
    )


def blank_pools(record: DataRecord) -> dict[Part, ImagePool]:
    """Pools of the recorded classes and shapes whose pictures are all black."""
    return {
        part: ImagePool(
            np.zeros((len(record.classes[part]), record.examples[part], *record.shape), np.uint8),
            names=record.classes[part],
        )
        for part in PARTS
    }


def as_recorded(
    pools: dict[Part, ImagePool], recall: Recall, *, of: str
) -> tuple[dict[Part, ImagePool], tuple[str, ...]]:
    """The pools of the recorded classes, found by name among those that are there, and what a report must say."""
    record = recall.record
    where: dict[str, tuple[Part, int]] = {}
    for part in reversed(PARTS):
        where |= {name: (part, i) for i, name in enumerate(pools[part].names)}
    known = {name.removesuffix(_MIRRORED) for names in record.classes.values() for name in names}
    later = sorted(set(where) - known)
    found: dict[Part, ImagePool] = {}
    for part in PARTS:
        wanted = [name for name in record.classes[part] if not name.endswith(_MIRRORED)]
        missing = [name for name in wanted if name not in where]
        if missing:
            raise OptionError(
                f"{of} lacks {len(missing)} of the {len(wanted)} {_IN_WORDS[part]} classes that the run recorded, such "
                f"as {missing[0]!r}. Give --path the data that it was trained on."
            )
        found[part] = _named(pools, part, wanted)
    if recall.test_on == "new":
        if not later:
            raise OptionError(f"{of} holds no class that came after the run. Leave out --classes new.")
        found["test"] = _named(pools, "test", later)
    return found, _notes(found, recall, later)


def _named(pools: dict[Part, ImagePool], part: Part, wanted: list[str]) -> ImagePool:
    for pool in (pools[part], *pools.values()):
        if tuple(wanted) == pool.names:
            return pool
        if set(wanted) <= set(pool.names):
            return tasks.subset(pool, wanted)
    # A run without trainval has its classes in one part each; one with it has both in "train".
    raise OptionError(f"the {_IN_WORDS[part]} classes of the run are dealt out among several parts of the data.")


def _notes(found: dict[Part, ImagePool], recall: Recall, later: list[str]) -> tuple[str, ...]:
    notes = []
    if later and recall.test_on == "new":
        notes.append(f"Tested on the {len(later)} classes that came after the run")
    elif later:
        named = ", ".join(later[:5]) + (", ..." if len(later) > 5 else "")
        notes.append(f"{len(later)} classes came after the run and are put aside: {named}")
    record = recall.record
    if recall.test_on == "test" and tasks.fingerprint(found["test"]) != record.fingerprints["test"]:
        notes.append("The pictures of the test classes have changed since the run")
    return tuple(notes)
