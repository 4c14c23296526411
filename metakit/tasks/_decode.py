"""Reading images that may be broken or hostile."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

# Far above any image a few-shot learner is given, far below what would fill a machine's memory.
MAX_PIXELS = 50_000_000
# A zip entry holds one encoded image; a larger one is not an image but a decompression bomb.
MAX_ENTRY_BYTES = 64 * 1024 * 1024


# Not whatever Pillow can open: it would hand PostScript to an interpreter, whatever the file is called.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


class DecodeError(ValueError):
    """A file is not the image, or not the archive of images, that it should be; the message names it.

    >>> import metakit as mk
    >>> issubclass(mk.tasks.DecodeError, ValueError)
    True
    """


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image, its size checked before any pixel is unpacked.

    **Arguments:** `data`, the bytes of the file; `name`, how errors call it; `max_pixels`, the largest width
    x height.

    **Returns:** a loaded Pillow image, in the mode the file has.

    **Raises:** `DecodeError` when the data is empty, of no known format, broken, or larger than `max_pixels`.
    """
    if not data:
        raise DecodeError(f"{name} is empty. Fetch or export that image again, or remove it.")
    try:
        # Opening reads the header only.
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise DecodeError(
            f"{name} is not an image of a known format ({len(data)} bytes, starting {data[:8]!r}). Fetch or "
            "export it again, or remove it."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(
            f"{name} declares too large a size: {error} The limit here is {max_pixels} pixels."
        ) from error
    except _BROKEN as error:
        raise DecodeError(f"{name} has a broken header: {error}. Fetch or export it again, or remove it.") from error
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(
            f"{name} declares {width}x{height} pixels, more than the limit of {max_pixels}; it was not "
            "decoded, since such a file can fill the memory. Shrink it first, or remove it."
        )
    try:
        image.load()
    except _BROKEN as error:
        raise DecodeError(
            f"{name} is a broken {image.format} image: {error}. Fetch or export it again, or remove it."
        ) from error
    return image


# What Pillow's decoders raise on damaged data; none of them means anything else here.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, zlib.error)


def read_zip(path: Path, suffix: str = ".png") -> Iterator[tuple[PurePosixPath, bytes]]:
    """The files of a zip archive that end in `suffix`, in sorted order, read without extracting anything.

    **Arguments:** `path` of the archive; `suffix`, in lower case.

    **Returns:** an iterator over `(path inside the archive, bytes)`.

    **Raises:** `DecodeError` when the archive is truncated or broken, when an entry's path leaves the
    archive's folder (absolute, or through `..`), or when an entry would unpack to more than 64 MiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
            for entry in entries:
                _check_entry(path, entry)
            for entry in entries:
                if entry.filename.lower().endswith(suffix) and not entry.is_dir():
                    yield PurePosixPath(entry.filename), _read_entry(path, archive, entry)
    except zipfile.BadZipFile as error:
        raise DecodeError(
            f"{path} is not a complete zip archive ({path.stat().st_size} bytes): {error}. An interrupted "
            "download leaves such a file; delete it and fetch it again."
        ) from error


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    # A backslash separates folders on Windows only, but an archive that uses one to climb is hostile
    # anywhere.
    parts = entry.filename.replace("\\", "/").split("/")
    if entry.filename.startswith(("/", "\\")) or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise DecodeError(
            f"{path} holds the entry {entry.filename!r}, whose path leaves the archive's own folder. Nothing "
            "was read; fetch the archive from its official place."
        )
    if entry.file_size > MAX_ENTRY_BYTES:
        raise DecodeError(
            f"{path} holds the entry {entry.filename!r} of {entry.file_size} bytes unpacked, more than the "
            f"limit of {MAX_ENTRY_BYTES} for one image. Nothing was read."
        )


def _read_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(entry)
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        # RuntimeError: encrypted; NotImplementedError: a compression method this Python lacks.
        raise DecodeError(f"{path}: the entry {entry.filename!r} cannot be unpacked: {error}.") from error


def nearest_existing(path: Path) -> Path:
    """The path itself or its closest parent that exists, to say in an error how far the path is right."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())
