"""Glyphs: few-shot classification of characters without a download."""

import hashlib
import os
from typing import Literal

import numpy as np

from metakit._typecheck import typed

from ._cache import through_cache
from ._distort import drawings
from ._faces import Faces, fonts_identity
from ._lookalikes import classes
from ._pool import ImagePool

# Raised whenever another set of pixels would come out, so that no cache of an older version is read.
_VERSION = 1


@typed
def glyphs(
    part: Literal["train", "val", "test"] = "train",
    *,
    size: int = 28,
    drawers: int = 20,
    seed: int = 0,
    cache: str | os.PathLike[str] | bool = True,
) -> ImagePool:
    """Characters of many scripts, drawn from the fonts that matplotlib installs: data without a download.

    - `"train"`, 1036 classes: Canadian Aboriginal 366, Latin 351, Cyrillic 159, Arabic 88, Old Italic 28,
      Ogham 25, Coptic 11, Lisu 8.
    - `"val"`, 91 classes: Tifinagh 32, N'Ko 31, Greek 28.
    - `"test"`, 224 classes: Georgian 113, Armenian 48, Lao 43, Hebrew 20.

    So the characters of a test come from scripts that training never saw. One class is one shape: characters
    that look alike, of one script or of several (Latin A, Greek Alpha, Cyrillic A; o and O, since every
    character is scaled to one size), are one class of the first part that has one of them, and a character of
    a later part that is nearly one of an earlier is left out. Accented letters, ligatures and positional
    forms are left out too.

    Each drawing takes one of up to twelve DejaVu faces (sans, mono, serif; regular, bold, oblique) and is
    turned, slanted, scaled, moved and bent a little, by amounts of its own. A nearest neighbour on pixels
    gets 56 % of 5-way 1-shot test episodes right, 79 % with 5 shots.

    Drawing a part takes one to five seconds, once; then it is read from the cache (16 MB for `"train"`). The
    same arguments give the same pixels with the same version of Pillow (other versions round a few of them
    otherwise; the classes stay the same); `fingerprint(pool)` names them.

    **Arguments:**

    - `part`: `"train"` (default), `"val"` or `"test"`.
    - `size`: height and width in pixels, 8 to 112; 28 by default, as Omniglot is used.
    - `drawers`: images of each class, at least 1; 20 by default, as in Omniglot. The first ones are the same
      whatever their number.
    - `seed`: of the distortions, at least 0. Classes do not depend on it.
    - `cache`: `True` (default) keeps the images in `cache_directory()` where that can be written, and where
      it cannot, the next call draws again; a path keeps them there or raises; `False` neither reads nor
      writes a cache.

    **Returns:** an `ImagePool` of one grey channel, ink 255 on 0, its classes named by script and the code
    point of their first character: `"Latin/U+0041"`.

    **Raises:**

    - `ValueError` when `size`, `drawers` or `seed` is out of range.
    - `FileNotFoundError` when matplotlib's fonts are not where it installs them.
    - `CacheWriteError` (an `OSError`) when `cache` is a path that cannot be written.

    >>> import metakit as mk
    >>> pool = mk.tasks.glyphs("val", drawers=2, cache=False)
    >>> pool.images.shape, pool.names[0]
    ((91, 2, 1, 28, 28), 'Greek/U+0372')

    **Source:** our own; after Omniglot (Lake et al. 2015), whose classes are characters, too, of 20 drawings
    each. The fonts: https://dejavu-fonts.github.io (a free licence; nothing of them is copied into metakit).
    """
    if not 8 <= size <= 112:
        raise ValueError(f"size must lie in 8..112 pixels, got {size}. The default is 28.")
    if drawers < 1:
        raise ValueError(f"drawers is the number of images of each class and must be at least 1, got {drawers}.")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}.")
    key = hashlib.sha256(repr((_VERSION, part, size, drawers, seed, fonts_identity())).encode()).hexdigest()
    stored = through_cache(
        cache,
        f"glyphs-{part}-{key[:32]}.arrays",
        "the drawings of Glyphs",
        lambda: _draw(part, size, drawers, seed),
    )
    return ImagePool(stored["images"][:, :, None], names=stored["names"].tolist())


def _draw(part: str, size: int, drawers: int, seed: int) -> dict[str, np.ndarray]:
    faces, images, names = Faces(), [], []
    for script, character, _ in classes(faces, part):
        # A stream for each character, so that no class depends on which others there are.
        rng = np.random.default_rng([seed, ord(character)])
        images.append(drawings(faces.masters(character), drawers, size, rng))
        names.append(f"{script}/U+{ord(character):04X}")
    return {"images": np.stack(images), "names": np.array(names)}
