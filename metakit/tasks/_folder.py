"""A user's own images: a folder for each class."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metakit._typecheck import typed

from ._decode import MAX_PIXELS, DecodeError, decode_image, nearest_existing
from ._pool import ImagePool

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


@typed
def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] = 28,
    channels: int = 1,
    invert: bool = False,
    max_pixels: int = MAX_PIXELS,
    on_image: Callable[[int, int], object] | None = None,
) -> ImagePool:
    """Images of your own, one folder for each class: `path/class name/*.png`.

    PNG, JPEG, BMP, GIF (the first frame), WebP, TIFF and PNM are read; hidden files and other endings are
    passed over. Classes and images come in sorted order, so the same folder gives the same pool. Classes may
    have different numbers of images. Images are turned as their EXIF orientation says, transparent parts
    become white, and all are resized (stretched, if the aspect differs) to one size with Lanczos filtering.

    **Arguments:**

    - `path`: the folder of class folders.
    - `size`: height and width in pixels, or a pair of them; 28 by default.
    - `channels`: 1 (grey, the default) or 3 (RGB).
    - `invert`: make dark ink on light paper into light ink on a dark background, as in Omniglot and Glyphs
      (ink = 1).
    - `max_pixels`: an image that declares a larger width x height is refused before it is decoded; 50
      million.
    - `on_image`: called after each image with how many have been read, of how many; default nothing.

    **Returns:** an `ImagePool` whose class names are the folders' names.

    **Raises:**

    - `FileNotFoundError` or `NotADirectoryError` when `path` is no folder; the nearest one that exists is
      named.
    - `ValueError` when there is no class folder, when a class has no image, or for a wrong `size` or
      `channels`.
    - `DecodeError` (a `ValueError`) for an image that is broken, too large, or of 16 or 32 bits, naming it.

    !!! example

        ```python
        pool = mk.tasks.image_folder("my_images", size=84, channels=3)
        sampler = mk.tasks.Episodes(pool, way=5, shot=1, queries=5)
        ```

    >>> import pathlib, tempfile, metakit as mk
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         (pathlib.Path(folder) / name).mkdir()
    ...         Image.new("L", (40, 40)).save(pathlib.Path(folder) / name / "1.png")
    ...     mk.tasks.image_folder(folder, size=28).images.shape
    (2, 1, 1, 28, 28)
    """
    _check_form(size, channels)
    root = Path(path).expanduser()
    files = _classes(root)
    most = max(len(images) for images in files.values())
    form = {"size": size, "channels": channels, "invert": invert, "max_pixels": max_pixels}
    pool = np.zeros((len(files), most, channels, *_sides(size)), np.uint8)
    total, read = sum(map(len, files.values())), 0
    for row, images in zip(pool, files.values(), strict=True):
        for slot, file in zip(row, images, strict=False):
            slot[:] = read_image(file, **form)
            read += 1
            if on_image is not None:
                on_image(read, total)
    return ImagePool(pool, [len(images) for images in files.values()], tuple(files))


def is_image_file(path: Path) -> bool:
    """Whether a file is taken for an image, by its name.

    **Arguments:** `path`.

    **Returns:** `True` for a visible file with one of the endings that `image_folder` reads.

    >>> is_image_file(Path("no/such/picture.png"))
    False
    """
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def read_image(
    file: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] = 28,
    channels: int = 1,
    invert: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """One image as `image_folder` reads it.

    **Arguments:** `file`; `size`, `channels`, `invert` and `max_pixels` as in `image_folder`.

    **Returns:** uint8 `[channels, height, width]`.

    **Raises:** `DecodeError` for an image that is broken, too large, or of 16 or 32 bits; `OSError` where the file
    cannot be read; `ValueError` for a wrong `size` or `channels`.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "white.png"
    ...     Image.new("L", (40, 40), "white").save(file)
    ...     int(read_image(file, size=8).min())
    255
    """
    _check_form(size, channels)
    height, width = _sides(size)
    image = _prepared(Path(file), "L" if channels == 1 else "RGB", max_pixels)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    pixels = pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)
    return 255 - pixels if invert else pixels


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_form(size: int | tuple[int, int], channels: int) -> None:
    if min(_sides(size)) < 1:
        raise ValueError(f"size must be at least 1 pixel each way, got {size}.")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}.")


def _classes(root: Path) -> dict[str, list[Path]]:
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(
            f"path must be a folder with one folder for each class, but {root} "
            f"{'is a file' if root.exists() else 'does not exist'}; the nearest that exists is "
            f"{nearest_existing(root)}."
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ValueError(
            f"{root} holds no folder; one is needed for each class, with its images inside: "
            f"{root / 'some class' / 'image.png'}."
        )
    files = {folder.name: _images(folder) for folder in folders}
    empty = [name for name, images in files.items() if not images]
    if empty:
        deeper = any(p.is_dir() for p in (root / empty[0]).iterdir())
        raise ValueError(
            f"{len(empty)} of the {len(files)} class folders of {root} hold no image "
            f"({', '.join(SUFFIXES)}), the first is {empty[0]!r}. "
            + ("It holds folders: point path one level deeper, or flatten them." if deeper else "Fill or remove it.")
        )
    return files


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if is_image_file(p))


def _prepared(file: Path, mode: str, max_pixels: int) -> Image.Image:
    image = ImageOps.exif_transpose(decode_image(file.read_bytes(), str(file), max_pixels=max_pixels))
    if image.mode.startswith(("I", "F")):
        # Pillow would clip these to 255 instead of scaling them: an almost white image, without a word.
        raise DecodeError(
            f"{file} has pixels of mode {image.mode!r}, more than 8 bits; how to scale them to 0..255 is "
            "your choice. Convert it to an 8-bit image first."
        )
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert(mode)
