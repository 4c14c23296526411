"""The user's cache directory, and files that are either whole or absent."""

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
