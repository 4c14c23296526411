"""Fetching a file so that it is whole or absent."""

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from metakit._typecheck import typed

_CHUNK = 1 << 20


class DownloadError(OSError):
    """A download failed; what came so far is kept beside the target, as `.part`, for the next attempt.

    >>> import metakit as mk
    >>> issubclass(mk.tasks.DownloadError, OSError)
    True
    """


@typed
def download(url: str, path: str | os.PathLike[str], checksum: str, *, timeout: float = 30.0) -> Path:
    """Fetch `url` to `path`, resuming an earlier attempt, and keep it only if its checksum is right.

    The bytes collect in `path` + `.part`; only a complete file with the right checksum is renamed to `path`,
    so `path` never holds half a file. An interrupted download is continued where it stopped, if the server
    can (HTTP ranges), and started again if it cannot. A file that is already at `path` with the right
    checksum is left alone and costs no request.

    **Arguments:**

    - `url`: `http://` or `https://`.
    - `path`: the file to make; folders above it are created.
    - `checksum`: `"sha256:<64 hex digits>"` or `"md5:<32 hex digits>"`. Prefer sha256; md5 shows damage, not
      malice.
    - `timeout`: seconds without a byte after which the server counts as lost.

    **Returns:** `path`.

    **Raises:**

    - `ValueError` when `url` or `checksum` is malformed.
    - `DownloadError` (an `OSError`) when the server cannot be reached, answers an error or breaks off (what
      came is kept for the next call), when the disk is full, when `path` already holds something else (it is
      left untouched), or when the complete file has the wrong checksum (it is deleted).

    !!! example

        ```python
        mk.tasks.download("https://example.org/images.zip", "data/images.zip", "sha256:9f86d081...")
        ```

    >>> import hashlib, pathlib, tempfile, metakit as mk
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "there already"
    ...     _ = path.write_bytes(b"data")
    ...     mk.tasks.download("https://example.org/data", path, "sha256:" + hashlib.sha256(b"data").hexdigest()).name
    'there already'
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must start with http:// or https://, got {url!r}.")
    algorithm, expected = _parse_checksum(checksum)
    target = Path(path).expanduser()
    part = target.with_name(target.name + ".part")
    if target.exists():
        found = _digest(target, algorithm)
        if found == expected:
            return target
        raise DownloadError(
            f"{target} already exists and is another file: its {algorithm} is {found}, expected {expected}. "
            "It was left untouched; move it away to download."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, timeout)
        found = _digest(part, algorithm)
        if found != expected:
            length = part.stat().st_size
            part.unlink()
            raise DownloadError(
                f"{url} gave a file of {length} bytes whose {algorithm} is {found}, expected {expected}; it "
                "was deleted. Either it was damaged on the way (try again) or it is not the file that was "
                "meant."
            )
        os.replace(part, target)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        # URLError, HTTPError, timeouts, refused and broken connections and full disks are all OSErrors.
        kept = f"{part.stat().st_size} bytes are kept in {part}; the next call continues there" if part.exists() else ""
        raise DownloadError(
            f"{url} could not be downloaded to {target}: {error}. {kept or 'Nothing was kept'}. Check the "
            "connection and the free space, or fetch the file by other means and put it there."
        ) from error
    return target


def _fetch(url: str, part: Path, timeout: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "metakit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # Nothing lies beyond what we have: complete already (the checksum decides), or larger than the
            # file is now.
            return
        raise
    with response:
        resumed = response.status == 206 and _starts_at(response.headers.get("Content-Range"), have)
        if response.status == 206 and not resumed:
            raise DownloadError(
                f"{url} answered a range other than the one asked for "
                f"({response.headers.get('Content-Range')!r} from byte {have}). Delete {part} to start "
                "again."
            )
        length = response.headers.get("Content-Length")
        # A server without ranges answers 200 with the whole file, which replaces what we had.
        with part.open("ab" if resumed else "wb") as file:
            begin = file.tell()
            shutil.copyfileobj(response, file, _CHUNK)
            file.flush()
            os.fsync(file.fileno())
            received = file.tell() - begin
    if length is not None and received < int(length):
        raise ConnectionError(f"the server broke off after {received} of {length} bytes")


def _starts_at(content_range: str | None, have: int) -> bool:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return match is not None and int(match[1]) == have


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _parse_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, digits = checksum.partition(":")
    length = {"sha256": 64, "md5": 32}.get(algorithm)
    if length is None or not re.fullmatch(f"[0-9a-fA-F]{{{length}}}", digits):
        raise ValueError(
            f"checksum must be 'sha256:' and 64 hexadecimal digits or 'md5:' and 32, got {checksum!r}. "
            "`sha256sum FILE` prints it."
        )
    return algorithm, digits.lower()
