"""Omniglot: 1623 characters of 50 alphabets, 20 drawings each."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from metakit._typecheck import typed

from ._cache import cache_directory, through_cache
from ._decode import DecodeError, decode_image, nearest_existing, read_zip
from ._download import download as fetch
from ._omniglot_splits import PARTS, characters
from ._pool import ImagePool, rotated

ARCHIVES = ("images_background", "images_evaluation")
# The authors' own release; MIT licence, (c) 2015 Brenden Lake. MD5 because those are the sums that
# torchvision has published for it; no sha256 of the release is known to us.
OFFICIAL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
OFFICIAL_CHECKSUMS = {
    "images_background": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "md5:6b91aef0f799c5bb55b94e3f2daec811",
}
DRAWINGS = 20
# Raised whenever decoding changes, so that no cache of an older version is read.
_CACHE_VERSION = 1


@typed
def omniglot(
    path: str | os.PathLike[str] | None = None,
    *,
    split: Literal["vinyals", "lake", "seeded"] = "vinyals",
    part: Literal["train", "val", "trainval", "test"] = "train",
    size: int = 28,
    rotations: bool = False,
    seed: int = 0,
    cache: str | os.PathLike[str] | bool = True,
    download: bool = False,
) -> ImagePool:
    """The characters of one part of Omniglot, as a pool of binary images with ink = 255.

    Reads `images_background` and `images_evaluation`, zipped as released or extracted, from one directory.
    Decoding the 32,460 drawings takes five to ten seconds; the result is cached (4 MB) and then loads in a
    fraction of one.

    The drawings are resized from 105x105 by nearest neighbour, as in every published experiment: Pillow
    resizes 1-bit images so whatever filter it is asked for. Converting to grey first would give another data
    set, with 89 grey levels.

    **Arguments:**

    - `path`: the directory. By default `$METAKIT_DATA/omniglot`, or `omniglot` in `cache_directory()`.
    - `split`: which characters are for what.
        - `"vinyals"` (default): the lists of Vinyals et al. 2016 as published by Snell et al. 2017: train
          1028, val 172, trainval 1200, test 423 characters.
        - `"lake"`: by alphabet, as released: train 964 (background), test 659 (evaluation); it has no val.
        - `"seeded"`: a random 1100, 100 (trainval 1200), 423, the sizes that Finn et al. 2017 used; `seed`
          chooses it.
    - `part`: `"train"`, `"val"`, `"trainval"` or `"test"`.
    - `size`: height and width in pixels, 1 to 105; 28 as in most papers, 20 for memory-augmented networks.
    - `rotations`: the four quarter turns of each character become classes of their own, see `rotated`.
    - `seed`: of the `"seeded"` split; the others ignore it.
    - `cache`: `True` (default) keeps decoded images in `cache_directory()` where that can be written, and
      where it cannot, the next call decodes again; a path keeps them there or raises; `False` neither reads
      nor writes a cache.
    - `download`: fetch archives that are missing (18 MB) from the authors' repository into `path` first.

    **Returns:** an `ImagePool`, classes sorted by name `Alphabet/characterNN`, 20 drawings each, sorted by
    file name.

    **Raises:**

    - `FileNotFoundError` when the data is not there: what was looked for, and the nearest folder that exists.
    - `DecodeError` (a `ValueError`) for a broken or hostile archive or image, naming it.
    - `ValueError` when `size` is out of range, the split has no such part, or the data lacks characters of
      the part.
    - `CacheWriteError` (an `OSError`) when `cache` is a path that cannot be written.
    - `DownloadError` (an `OSError`) when `download` fails.

    !!! example

        ```python
        pool = mk.tasks.omniglot("data/omniglot", part="train")
        sampler = mk.tasks.Episodes(pool, way=5, shot=1, queries=15, rotate="per_class")
        ```

    **Source:** Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program
    induction", Science 2015, https://github.com/brendenlake/omniglot (MIT licence).

    >>> import metakit as mk
    >>> mk.tasks.omniglot("no/such/folder")
    Traceback (most recent call last):
    ...
    FileNotFoundError: ...
    """
    if not 1 <= size <= 105:
        raise ValueError(f"size must lie in 1..105 pixels (the drawings are 105x105), got {size}.")
    if part not in PARTS[split]:
        raise ValueError(f"split={split!r} has no part {part!r}; it has {', '.join(PARTS[split])}.")
    if path is None:
        data = os.environ.get("METAKIT_DATA")
        root = Path(data).expanduser() / "omniglot" if data else cache_directory() / "omniglot"
    else:
        root = Path(path).expanduser()
    # The two sets of alphabets of `lake` are the two archives, so each of its parts needs only one.
    archives = {"train": ARCHIVES[:1], "test": ARCHIVES[1:]}[part] if split == "lake" else ARCHIVES
    if download:
        for archive in archives:
            if not any(place.exists() for place in _places(root, archive)):
                fetch(f"{OFFICIAL}{archive}.zip", root / f"{archive}.zip", checksum=OFFICIAL_CHECKSUMS[archive])
    drawings: dict[str, np.ndarray] = {}
    for archive in archives:
        drawings |= _load(_find(root, archive), size, cache)
    wanted = sorted(drawings) if split == "lake" else characters(split, part, seed)
    missing = [name for name in wanted if name not in drawings]
    if missing:
        raise ValueError(
            f"{root} lacks {len(missing)} of the {len(wanted)} characters of part {part!r} of split "
            f"{split!r}, such as {missing[0]!r}; it has {len(drawings)}. Fetch or extract "
            f"{' and '.join(archives)} again, completely."
        )
    pool = ImagePool(np.stack([drawings[name] for name in wanted]), names=wanted)
    return rotated(pool) if rotations else pool


def _places(root: Path, archive: str) -> tuple[Path, Path]:
    return root / archive, root / f"{archive}.zip"


def _find(root: Path, archive: str) -> Path:
    for place in _places(root, archive):
        if place.exists():
            return place
    raise FileNotFoundError(
        f"Omniglot was looked for in {root}, as the folder {archive} or the file {archive}.zip, and neither "
        f"is there; the nearest folder that exists is {nearest_existing(root)}. Give the directory that "
        "holds them as path, set METAKIT_DATA to the directory above an 'omniglot' folder, or pass "
        "download=True."
    )


def _load(source: Path, size: int, cache: str | os.PathLike[str] | bool) -> dict[str, np.ndarray]:
    """Drawings `[20, 1, size, size]` of each character of one archive, through the cache."""
    if cache is False:
        return _decode_all(source, size)
    name = f"omniglot-{_CACHE_VERSION}-{size}-{_identity(source)[:32]}.arrays"
    stored = through_cache(cache, name, f"the decoded images of {source}", lambda: _to_bits(_decode_all(source, size)))
    images = np.unpackbits(stored["bits"], axis=-1, count=size) * np.uint8(255)
    return dict(zip(stored["names"].tolist(), images, strict=True))


def _to_bits(drawings: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    bits = np.packbits(np.stack(list(drawings.values())) > 0, axis=-1)
    return {"names": np.array(list(drawings)), "bits": bits}


def _identity(source: Path) -> str:
    """What a cache is keyed by: an archive's bytes, or a folder's listing with sizes and times."""
    if source.is_file():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256(str(source.resolve()).encode())
    for file in sorted(source.rglob("*.png")):
        status = file.stat()
        digest.update(f"{file.relative_to(source)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(source: Path) -> Iterable[tuple[PurePosixPath, bytes]]:
    if source.is_file():
        return read_zip(source)
    return ((PurePosixPath(f.relative_to(source.parent)), f.read_bytes()) for f in sorted(source.rglob("*.png")))


def _decode_all(source: Path, size: int) -> dict[str, np.ndarray]:
    collected: dict[str, list[np.ndarray]] = {}
    for name, pixels in _decoded(source, size):
        collected.setdefault(name, []).append(pixels)
    if not collected:
        raise DecodeError(f"{source} holds no drawing Alphabet/characterNN/*.png. Fetch or extract it again.")
    for name, drawings in collected.items():
        if len(drawings) != DRAWINGS:
            raise DecodeError(
                f"{source}: character {name!r} has {len(drawings)} drawings instead of {DRAWINGS}. Fetch or "
                "extract it again."
            )
    return {name: np.stack(collected[name]) for name in sorted(collected)}


def _decoded(source: Path, size: int) -> Iterator[tuple[str, np.ndarray]]:
    for file, data in _files(source):
        if file.name.startswith("._"):  # resource forks, which macOS adds when it zips a folder
            continue
        where = f"{source}: {file}"
        if len(file.parts) != 4:
            raise DecodeError(f"{where} is not at {source.stem}/Alphabet/characterNN/drawing.png.")
        image = decode_image(data, where)
        if image.mode != "1" or image.size != (105, 105):
            raise DecodeError(
                f"{where} is a {image.size[0]}x{image.size[1]} image of mode {image.mode!r}; Omniglot's "
                "drawings are 105x105, 1 bit. Use the released files, or image_folder for images of your "
                "own."
            )
        # The release draws black ink, 0, on white paper.
        ink = ~np.asarray(image.resize((size, size), Image.Resampling.NEAREST))
        yield f"{file.parts[1]}/{file.parts[2]}", ink[None] * np.uint8(255)
