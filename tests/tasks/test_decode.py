"""Broken and hostile images and archives: refused by name, before they can do harm."""

import io
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from metakit.tasks import DecodeError
from metakit.tasks._decode import decode_image, nearest_existing, read_zip


def _png(width: int = 9, height: int = 9) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def _png_that_declares(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000))]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _with_flipped_byte(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]


def test_a_sound_image_is_decoded():
    """Bug: a guard that refuses everything."""
    assert decode_image(_png(4, 6), "some.png").size == (4, 6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "some.png is empty"),
        (
            b"<html>404</html>",
            r"some.png is not an image of a known format \(16 bytes, starting b'<html>40'\)",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "some.png is not an image of a known format"),
        (_png()[:60], "some.png is a broken PNG image"),
        (_png()[:20], "some.png "),
        (_with_flipped_byte(_png(), 50), "some.png is a broken PNG image"),
        (
            _png_that_declares(10_000, 10_000),
            "some.png declares 10000x10000 pixels, more than the limit of 50000000",
        ),
        (
            _png_that_declares(100_000, 100_000),
            "some.png declares too large a size: .*10000000000 pixels.*50000000",
        ),
    ],
    ids=["empty", "html", "postscript", "truncated", "header cut", "flipped byte", "large", "bomb"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_is_named(data, message):
    """Bug: an error that does not say which of 32,460 files is broken; memory filled by a forged header."""
    with pytest.raises(DecodeError, match=message):
        decode_image(data, "some.png")


def test_the_limit_is_the_callers():
    """Bug: a limit that is documented and ignored."""
    with pytest.raises(DecodeError, match="declares 9x9 pixels, more than the limit of 80"):
        decode_image(_png(), "some.png", max_pixels=80)
    assert decode_image(_png(), "some.png", max_pixels=81).size == (9, 9)


def _archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_is_read_in_sorted_order(tmp_path):
    """Bug: images in the order of the archive, so that two copies of one data set differ."""
    path = _archive(tmp_path / "a.zip", {"r/b.PNG": b"2", "r/": b"", "r/a.png": b"1", "r/notes.txt": b"3"})
    assert list(read_zip(path)) == [(PurePosixPath("r/a.png"), b"1"), (PurePosixPath("r/b.PNG"), b"2")]


@pytest.mark.parametrize(
    "entry",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "\\evil.png", "C:\\evil.png"],
)
def test_an_entry_that_leaves_the_archive_is_refused(tmp_path, entry):
    """Bug: a path from a stranger's archive taken as a path on this machine; entries read before it."""
    path = _archive(tmp_path / "a.zip", {"a/good.png": b"1", entry: b"2"})
    with pytest.raises(DecodeError, match=r"a\.zip holds the entry .*evil\.png', whose path leaves"):
        next(read_zip(path))


def test_an_entry_that_unpacks_to_too_much_is_refused(tmp_path):
    """Bug: 65 MiB of zeros packed into 64 KiB, unpacked before anyone asks how large an image may be."""
    path = _archive(tmp_path / "a.zip", {"a/bomb.png": bytes(65 * 1024 * 1024)})
    with pytest.raises(DecodeError, match=r"'a/bomb\.png' of 68157440 bytes unpacked, more than the limit of 67108864"):
        next(read_zip(path))


def test_a_truncated_zip_is_named(tmp_path):
    """Bug: "File is not a zip file", without a name, after an interrupted download."""
    path = _archive(tmp_path / "a.zip", {"a/a.png": _png(50, 50)})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DecodeError, match=r"a\.zip is not a complete zip archive \(\d+ bytes\).*fetch it again"):
        next(read_zip(path))


def test_a_damaged_entry_is_named(tmp_path):
    """Bug: a bad checksum inside an archive that reaches the user without the file's name."""
    path = _archive(tmp_path / "a.zip", {"a/a.png": _png(50, 50)})
    path.write_bytes(_with_flipped_byte(path.read_bytes(), 200))
    with pytest.raises(DecodeError, match=r"a\.zip.*a/a\.png"):
        next(read_zip(path))


def test_the_nearest_existing_folder(tmp_path):
    """Bug: "not found" without saying how far the path is right."""
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert nearest_existing(tmp_path) == tmp_path
