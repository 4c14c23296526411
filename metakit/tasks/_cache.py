"""The user's cache directory, and files that are either whole or absent."""

import hashlib
import io
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

_DIGEST = hashlib.sha256().digest_size


class CacheWriteError(OSError):
    """A cache that was asked for by name could not be written; earlier files there are as they were.

    >>> import metakit as mk
    >>> issubclass(mk.tasks.CacheWriteError, OSError)
    True
    """


def cache_directory() -> Path:
    """Where derived data may be kept: `METAKIT_CACHE`, or `metakit` in the user's cache directory.

    That is `$XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows. Nothing
    is created by asking.

    **Returns:** a path.

    >>> import metakit as mk
    >>> mk.tasks.cache_directory().is_absolute()
    True
    """
    chosen = os.environ.get("METAKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (base.expanduser() / "metakit").absolute()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make `path` from what `write(file)` writes: all of it, or, after any error, nothing.

    The bytes go to a temporary neighbour, reach the disk, and are renamed, so that neither a full disk nor a
    killed process leaves half a file under the final name, and two processes may write at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: its files are private to the user, and a cache may be shared.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def through_cache(
    cache: str | os.PathLike[str] | bool, name: str, what: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """The arrays of `make()`, kept as the file `name` in the cache and read from there the next time.

    `cache` is `True` (the user's directory, best effort), a directory (written or an error) or `False` (neither
    read nor written). `what` names the arrays in that error.
    """
    if cache is False:
        return make()
    directory = cache_directory() if cache is True else Path(cache).expanduser()
    stored = _read(directory / name)
    if stored is not None:
        return stored
    arrays = make()
    try:
        write_atomically(directory / name, lambda file: file.write(_packed(arrays)))
    except OSError as error:
        # By default the cache is only a convenience: without it everything is the same but the time of the
        # next call.
        if cache is not True:
            raise CacheWriteError(
                f"{what} could not be cached in {directory}: {error}. Nothing there was changed. Free some space "
                "or give another directory, or pass cache=False to go without."
            ) from error
    return arrays


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The names, the arrays in their order, and a checksum; unlike a zip, the same bytes at any time of day."""
    data = io.BytesIO()
    for array in (np.array(list(arrays)), *arrays.values()):
        np.save(data, array, allow_pickle=False)
    return data.getvalue() + hashlib.sha256(data.getvalue()).digest()


def _read(file: Path) -> dict[str, np.ndarray] | None:
    """A cache that is absent or damaged is one that has to be made again."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    data, digest = stored[:-_DIGEST], stored[-_DIGEST:]
    # Before NumPy parses anything, which can fail in too many ways on damaged bytes.
    if hashlib.sha256(data).digest() != digest:
        return None
    file_like = io.BytesIO(data)
    names = np.load(file_like, allow_pickle=False).tolist()
    return {name: np.load(file_like, allow_pickle=False) for name in names}
