"""Options of images: where pictures come from, and the episodes that are drawn from them."""

import abc
import copy
import dataclasses
import pathlib
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np

from metakit import tasks
from metakit.experiments import DataRecord, Words
from metakit.tasks import ImagePool

from ._decoding import decoding
from ._markers import InTest
from ._option_error import OptionError, option, require_least
from ._recall import PARTS, Part, Recall, as_recorded, blank_pools, record_of
from ._refusals import as_options

IMAGES = ("glyphs", "omniglot", "folder")
_IN_WORDS: dict[Part, str] = {"train": "training", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """Pictures to train, validate and test on."""

    pools: dict[Part, ImagePool]
    record: DataRecord
    about: str
    name: str
    notes: tuple[str, ...] = ()
    evaluation: bool = False
    trainval: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of a picture."""
        channels, size, _ = self.record.shape
        return channels, size

    @property
    def shown(self) -> dict[str, Any]:
        """What an `Experiment` remembers of the pictures, and which learner is tested.

        Where the classes of validation were trained on, a validation chooses nothing, and it is the last."""
        return {"data": self.record, "tested": "last" if self.trainval else "best"}

    def words(self, about: str, task: str, norm: str) -> Words:
        """How a report speaks of an experiment on these pictures."""
        last = ("Learner: the last one, since the classes of validation were trained on",) if self.trainval else ()
        return Words(f"{about} on {self.name}", self.about, task, norm, (*self.notes, *last))

    def episodes(self, part: Part, counts: tuple[int, int, int], **options: Any) -> Any:
        """A sampler of episodes of `(way, shot, queries)`; none to validate on in an evaluation."""
        return self._sampler(tasks.Episodes, part, counts, options)

    def sequences(self, part: Part, counts: tuple[int, int], **options: Any) -> Any:
        """A sampler of sequences of `(way, presentations)`; none to validate on in an evaluation."""
        return self._sampler(tasks.Sequences, part, counts, options)

    def _sampler(self, kind: Any, part: Part, counts: tuple[int, ...], options: dict[str, Any]) -> Any:
        if self.evaluation and part == "val":
            return None
        with as_options("" if part == "train" or self.evaluation else "test_", classes=_IN_WORDS[part]):
            return kind(self.pools[part], *counts, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures(abc.ABC):
    """Base of the sources of pictures."""

    INK: ClassVar[bool] = True
    data: str
    mirrored: bool = False
    """Train on the mirror image of each class as a class of its own too."""
    # No option: set by `recalling`.
    recall: ClassVar[Recall | None] = None

    def recalling(self, recall: Recall) -> Self:
        """The same pictures, with the classes that a run has recorded."""
        one = copy.copy(self)
        object.__setattr__(one, "recall", recall)
        return one

    def load(self, episodes: Any, *, seed: int, size: int = 28) -> Parts:
        """The pictures of each part, in squares of `size` pixels.

        `seed` deals out what has no split of its own; `episodes`, with a `way` and an `of_test`, say how many classes
        the parts need."""
        recall = self.recall
        if recall is not None and recall.blank:
            return Parts(blank_pools(recall.record), recall.record, "", self.data, trainval=self.trains_on_val)
        with as_options():
            pools = self.pools(size) if recall is not None else self.parts(self.pools(size), episodes, seed)
        notes: tuple[str, ...] = ()
        if recall is not None:
            pools, notes = as_recorded(pools, recall, of=str(getattr(self, "path", None) or self.data))
        if self.mirrored:
            pools["train"] = tasks.mirrored(pools["train"])
        record, evaluation = record_of(pools, recall, ink=self.INK), recall is not None and recall.evaluation
        return Parts(pools, record, self.about(pools, seed), self.data, notes, evaluation, self.trains_on_val)

    @property
    def trains_on_val(self) -> bool:
        """Whether the classes of validation are trained on."""
        return False

    @abc.abstractmethod
    def pools(self, size: int) -> dict[Part, ImagePool]:
        """All pictures by part, before any class is mirrored; where there is no split, all of them in each part."""

    def parts(self, pools: dict[Part, ImagePool], episodes: Any, seed: int) -> dict[Part, ImagePool]:
        """The same dealt out to the parts."""
        del episodes, seed
        return pools

    @abc.abstractmethod
    def split_in_words(self, seed: int) -> str:
        """Who dealt the classes out."""

    def among(self) -> dict[str, bool]:
        """What stands among the training classes beside those of the split."""
        return {"mirror images": self.mirrored}

    def about(self, pools: dict[Part, ImagePool], seed: int) -> str:
        """The data of a report."""
        classes = ", ".join(f"{len(pools[part].names)} {part}" for part in PARTS)
        among = " and ".join(words for words, given in self.among().items() if given)
        classes += f" classes{f', {among} among those of train' if among else ''}"
        sha = tasks.fingerprint(pools["test"])[:12]
        return f"{self.data} ({self.split_in_words(seed)}; {classes}; test pool sha256 {sha})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glyphs(Pictures):
    """Characters of many scripts, rendered from fonts on this machine; test classes come from unseen scripts."""

    data: Literal["glyphs"] = "glyphs"

    def pools(self, size: int) -> dict[Part, ImagePool]:
        del size  # they are 28 pixels wide
        return {part: tasks.glyphs(part) for part in PARTS}

    def split_in_words(self, seed: int) -> str:
        del seed
        return "split by script"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Omniglot(Pictures):
    """Handwritten characters of 50 alphabets, with quarter turns as classes of their own."""

    data: Literal["omniglot"] = "omniglot"
    path: Annotated[pathlib.Path | None, InTest("path")] = None
    """Folder of the two archives, images_background and images_evaluation, zipped or extracted."""
    split: Literal["vinyals", "lake", "seeded"] = "vinyals"
    """Which characters are for what."""
    trainval: bool = False
    """Train on the validation classes too, as many published models do; the last learner is then tested."""
    download: bool = False
    """Fetch the archives into --path (or the cache) if they are not there."""

    def pools(self, size: int) -> dict[Part, ImagePool]:
        return {part: self._pool(part, size) for part in PARTS}

    @property
    def trains_on_val(self) -> bool:
        return self.trainval

    def among(self) -> dict[str, bool]:
        return {"those of val": self.trainval, **super().among()}

    def split_in_words(self, seed: int) -> str:
        del seed
        return f"{self.split} split, 90-degree rotations as classes"

    def _pool(self, part: Part, size: int) -> ImagePool:
        try:
            return self._lake(part, size) if self.split == "lake" else self._part(part, size)
        except FileNotFoundError as error:
            found, _, _ = str(error).partition(" Give the directory")
            raise OptionError(
                f"{found} Give --path the folder that holds both archives, or add --download to fetch them."
            ) from error

    def _part(self, part: Part, size: int) -> ImagePool:
        both = "trainval" if self.trainval and part == "train" else part
        return tasks.omniglot(self.path, split=self.split, part=both, size=size, rotations=True, download=self.download)

    def _lake(self, part: Part, size: int) -> ImagePool:
        """`lake` names two sets of alphabets; every eighth background character is kept for validation.

        It has no validation part, and its test alphabets must not choose the model."""
        common = {"split": "lake", "size": size, "download": self.download}
        if part == "test":
            return tasks.omniglot(self.path, part="test", rotations=True, **common)
        pool = tasks.omniglot(self.path, part="train", rotations=False, **common)
        held_out = np.arange(len(pool.names)) % 8 == 7
        chosen = held_out if part == "val" else ~held_out | self.trainval
        return tasks.rotated(tasks.subset(pool, np.flatnonzero(chosen).tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(Pictures):
    """Images of your own, one sub-folder a class; classes are dealt out 70 / 15 / 15 %."""

    INK: ClassVar[bool] = False
    data: Literal["folder"] = "folder"
    path: Annotated[pathlib.Path | None, InTest("path")] = None
    """Folder that holds one sub-folder of images for each class."""

    def pools(self, size: int) -> dict[Part, ImagePool]:
        if self.path is None:
            raise OptionError(
                "--data folder needs --path, a folder that holds one sub-folder of images for each class."
            )
        with decoding() as tell:
            return dict.fromkeys(PARTS, tasks.image_folder(self.path, size=size, on_image=tell))

    def parts(self, pools: dict[Part, ImagePool], episodes: Any, seed: int) -> dict[Part, ImagePool]:
        pool, way, test_way = pools["train"], episodes.way, episodes.of_test[0]
        order = np.random.default_rng(seed).permutation(len(pool.names))
        held_out = max(round(0.15 * len(order)), test_way)
        dealt = {"val": order[:held_out], "test": order[held_out : 2 * held_out], "train": order[2 * held_out :]}
        if len(dealt["train"]) < way:
            raise OptionError(
                f"{self.path} holds {len(order)} classes; {way}-way training with unseen classes for validation and "
                f"test needs at least {2 * test_way + way}. Add classes, or lower --way and --test-way."
            )
        return {part: tasks.subset(pool, sorted(int(i) for i in dealt[part])) for part in PARTS}

    def split_in_words(self, seed: int) -> str:
        return f"classes dealt out with seed {seed}" if self.recall is None else "classes as the run recorded them"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneWay:
    """The episodes, of as many classes in the test as in training."""

    OF: ClassVar[tuple[str, ...]] = IMAGES
    way: int = 5
    """Classes in an episode; the network has an output for each."""
    shot: int = 1
    """Support examples of each class in a training episode."""
    queries: int = 3
    """Query examples of each class in a training episode."""
    test_shot: Annotated[int | None, InTest("shot")] = None
    """Support examples of each class in a test episode; by default as in training."""
    test_queries: Annotated[int | None, InTest("queries")] = 5
    """Query examples of each class in a test episode; by default as in training."""

    def __post_init__(self):
        names = ("way", "shot", "queries", "test_way", "test_shot", "test_queries")
        counts = {name: vars(self)[name] for name in names if name in vars(self)}
        require_least(dict.fromkeys(counts, 1), counts)
        for name in ("way", "test_way"):
            if counts.get(name) == 1:
                raise OptionError(f"{option(name)} must be at least 2, got 1: of one class every answer is right.")

    @property
    def of_training(self) -> tuple[int, int, int]:
        """Way, shot and queries of training."""
        return self.way, self.shot, self.queries

    @property
    def of_test(self) -> tuple[int, int, int]:
        """Way, shot and queries of the test."""
        return self.way, _or(self.test_shot, self.shot), _or(self.test_queries, self.queries)

    @property
    def in_words(self) -> str:
        """A test task."""
        way, shot, queries = self.of_test
        return f"{way}-way {shot}-shot, {queries} queries a class"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyWay(OneWay):
    """The episodes."""

    way: int = 20
    """Classes in a training episode."""
    test_way: Annotated[int | None, InTest("way")] = 5
    """Classes in a test episode; by default as in training."""

    @property
    def of_test(self) -> tuple[int, int, int]:
        _, shot, queries = super().of_test
        return _or(self.test_way, self.way), shot, queries


def _or(value: int | None, usual: int) -> int:
    return usual if value is None else value
