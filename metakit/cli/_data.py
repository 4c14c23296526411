"""Training, validation and test tasks from settings."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from metakit import tasks

from ._algorithms import form_of
from ._config import Settings, UsageError
from ._refusals import as_usage

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


_IN_WORDS: dict[Part, str] = {"train": "training", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Data:
    """Where tasks come from."""

    train: Callable[..., Any]
    val: Callable[..., Any]
    test: Callable[..., Any]
    pools: dict[Part, tasks.ImagePool]
    about: str


def load(settings: Settings, *, dealt_by: Settings | None = None, download: bool = False) -> Data:
    """The tasks of a run; `dealt_by` are the settings of the run that is evaluated, which dealt a folder's classes."""
    if settings.data in _DRAWN:
        pools, about = {}, _DRAWN[settings.data]
    else:
        with as_usage():
            pools = _folder(settings, dealt_by or settings) if settings.data == "folder" else _parts(settings, download)
        if settings.mirrored:
            pools["train"] = tasks.mirrored(pools["train"])
        about = _about(settings, pools)

    def sampler(part: Part) -> Callable[..., Any]:
        # An evaluation has other episodes in the test alone.
        of, training = settings if part == "test" else dealt_by or settings, part == "train"
        with as_usage("" if training or dealt_by is not None else "test_", classes=_IN_WORDS[part]):
            return form_of(of).sampler(of, pools.get(part), training=training)

    return Data(train=sampler("train"), val=sampler("val"), test=sampler("test"), pools=pools, about=about)


# Tasks that are drawn rather than found.
_DRAWN = {
    "sinusoid": "sinusoids, amplitude 0.1 to 5.0",
    "linear": "lines of varying slope and intercept",
    "gp": "curves from a Gaussian process, length scale 0.4",
    "bandits": "Bernoulli bandits, each arm's probability uniform in 0..1",
    "navigation": "walks to a goal drawn uniformly from a square of side 1",
}


def _parts(settings: Settings, download: bool) -> dict[Part, tasks.ImagePool]:
    return {part: _pool(settings, part, download) for part in PARTS}


def _pool(settings: Settings, part: Part, download: bool) -> tasks.ImagePool:
    if settings.data == "glyphs":
        return tasks.glyphs(part)
    try:
        return _omniglot(settings, part, download)
    except FileNotFoundError as error:
        found, _, _ = str(error).partition(" Give the directory")
        raise UsageError(
            f"{found} Give --path the folder that holds both archives, or add --download to fetch them."
        ) from error


def _omniglot(settings: Settings, part: Part, download: bool) -> tasks.ImagePool:
    if settings.split == "lake":  # it has no validation part; its test alphabets must not choose the model
        return _lake(settings, part, download)
    split, size = settings.split or "vinyals", form_of(settings).omniglot_size
    both = "trainval" if settings.trainval and part == "train" else part
    return tasks.omniglot(settings.path, split=split, part=both, size=size, rotations=True, download=download)


def _lake(settings: Settings, part: Part, download: bool) -> tasks.ImagePool:
    """`lake` names two sets of alphabets; every eighth background character is kept for validation."""
    size = form_of(settings).omniglot_size
    if part == "test":
        return tasks.omniglot(settings.path, split="lake", part="test", size=size, rotations=True, download=download)
    pool = tasks.omniglot(settings.path, split="lake", part="train", size=size, rotations=False, download=download)
    held_out = np.arange(len(pool.names)) % 8 == 7
    chosen = held_out if part == "val" else ~held_out | settings.trainval
    return tasks.rotated(tasks.subset(pool, np.flatnonzero(chosen).tolist()))


def _folder(settings: Settings, dealt_by: Settings) -> dict[Part, tasks.ImagePool]:
    """A folder has no split of its own: classes are dealt out in a seeded order, 70 / 15 / 15 %.

    Evaluation on other episodes must not deal them again: unseen classes would be training classes."""
    if settings.path is None:
        raise UsageError("--data folder needs --path, a folder that holds one sub-folder of images for each class.")
    pool = tasks.image_folder(settings.path)
    order = np.random.default_rng(dealt_by.seed).permutation(len(pool.names))
    way, test_way = dealt_by.way, dealt_by.test_way
    held_out = max(round(0.15 * len(order)), test_way)
    dealt = {"val": order[:held_out], "test": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
    if len(dealt["train"]) < way:
        raise UsageError(
            f"{settings.path} holds {len(order)} classes; {way}-way training with unseen classes for "
            f"validation and test needs at least {2 * test_way + way}. Add classes, or lower --way and --test-way."
        )
    if settings.test_way > held_out:
        raise UsageError(
            f"--way {settings.test_way}: of the {len(order)} classes of {settings.path}, {held_out} were kept from "
            "training for the test."
        )
    return {part: tasks.subset(pool, sorted(int(i) for i in dealt[part])) for part in PARTS}


def _about(settings: Settings, pools: dict[Part, tasks.ImagePool]) -> str:
    classes = ", ".join(f"{len(pools[part].names)} {part}" for part in PARTS)
    split = {
        "omniglot": f"{settings.split or 'vinyals'} split, 90-degree rotations as classes",
        "glyphs": "split by script",
    }
    named = split.get(settings.data, f"classes dealt out with seed {settings.seed}")
    more = {"those of val": settings.trainval, "mirror images": settings.mirrored}
    among = " and ".join(words for words, given in more.items() if given)
    classes += f" classes{f', {among} among those of train' if among else ''}"
    return f"{settings.data} ({named}; {classes}; test pool sha256 {tasks.fingerprint(pools['test'])[:12]})"
