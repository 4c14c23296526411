"""The downloader against a server on this machine that can break off, refuse ranges, or lie."""

import errno
import hashlib
import http.server
import os
import re
import threading

import numpy as np
import pytest

from metakit.tasks import DownloadError, download

DATA = np.random.default_rng(0).bytes(300_000)
CHECKSUM = "sha256:" + hashlib.sha256(DATA).hexdigest()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = DATA
        self.ranges = True  # answer 206 to a Range
        self.break_after: list[int] = []  # for each request: bytes after which the connection is cut
        self.shift = 0  # answer with another range than was asked for
        self.asked: list[str | None] = []  # the Range of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/images.zip"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/images.zip":
            self.send_error(404)
            return
        start = 0
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + server.shift
            if start >= len(server.data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.break_after.pop(0)] if server.break_after else body)

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
    """Bug: leftovers beside the file, or a second download of what is there."""
    target = tmp_path / "new" / "images.zip"
    for _ in range(2):
        assert download(server.url, target, CHECKSUM) == target
    assert target.read_bytes() == DATA
    assert _names(target.parent) == ["images.zip"]
    assert server.asked == [None]


def test_md5_is_understood(server, tmp_path):
    """Bug: the sums that are published for Omniglot, md5, compared as sha256."""
    download(server.url, tmp_path / "a.zip", "md5:" + hashlib.md5(DATA).hexdigest().upper())
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_an_interrupted_download_is_continued(server, tmp_path):
    """Bug: half a file under the final name, or starting again from byte 0."""
    server.break_after = [100_000, 50_000]
    for have in (100_000, 150_000):
        with pytest.raises(DownloadError, match=rf"broke off after .* {have} bytes are kept in .*images\.zip\.part"):
            download(server.url, tmp_path / "images.zip", CHECKSUM)
        assert _names(tmp_path) == ["images.zip.part"]
    download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip").read_bytes() == DATA
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert _names(tmp_path) == ["images.zip"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    """Bug: the whole file appended to the part that was there."""
    server.break_after, server.ranges = [100_000], False
    with pytest.raises(DownloadError):
        download(server.url, tmp_path / "images.zip", CHECKSUM)
    download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip").read_bytes() == DATA


def test_a_complete_part_needs_only_its_name(server, tmp_path):
    """Bug: killed between the last byte and the rename; the server then answers 416 for ever."""
    (tmp_path / "images.zip.part").write_bytes(DATA)
    download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip").read_bytes() == DATA
    assert _names(tmp_path) == ["images.zip"]


def test_a_wrong_range_is_not_appended(server, tmp_path):
    """Bug: bytes from elsewhere in the file joined to the part."""
    (tmp_path / "images.zip.part").write_bytes(DATA[:1000])
    server.shift = 7
    with pytest.raises(DownloadError, match=r"answered a range other than the one asked for.*from byte 1000"):
        download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip.part").read_bytes() == DATA[:1000]


@pytest.mark.parametrize("left", [b"", b"of another file", DATA + b"more"])
def test_a_wrong_checksum_leaves_nothing_and_the_next_call_starts_afresh(server, tmp_path, left):
    """Bug: a stale part that makes every later attempt fail, or a wrong file under the final name."""
    (tmp_path / "images.zip.part").write_bytes(left)
    wrong = "sha256:" + 64 * "0"
    with pytest.raises(DownloadError, match=f"whose sha256 is [0-9a-f]{{64}}, expected {64 * '0'}; it was deleted"):
        download(server.url, tmp_path / "images.zip", wrong)
    assert _names(tmp_path) == []
    download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip").read_bytes() == DATA


def test_another_file_in_the_way_is_left_alone(server, tmp_path):
    """Bug: a user's file overwritten."""
    (tmp_path / "images.zip").write_bytes(b"precious")
    with pytest.raises(DownloadError, match=r"images\.zip already exists and is another file.*left untouched"):
        download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip").read_bytes() == b"precious"
    assert server.asked == []


def test_a_missing_page_and_a_dead_server_are_explained(server, tmp_path):
    """Bug: an HTML error page saved as the data, or a bare URLError."""
    with pytest.raises(DownloadError, match=r"/nowhere could not be downloaded to .*404.*Nothing was kept"):
        download(server.url.replace("images.zip", "nowhere"), tmp_path / "images.zip", CHECKSUM)
    with pytest.raises(DownloadError, match=r"could not be downloaded.*refused"):
        download("http://127.0.0.1:9/images.zip", tmp_path / "images.zip", CHECKSUM)
    assert _names(tmp_path) == []


def test_a_full_disk_loses_nothing(server, tmp_path, monkeypatch):
    """Bug: a file cut short by a full disk that counts as complete."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match=r"No space left on device.*free space"):
            download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert _names(tmp_path) == ["images.zip.part"]
    download(server.url, tmp_path / "images.zip", CHECKSUM)
    assert (tmp_path / "images.zip").read_bytes() == DATA


@pytest.mark.parametrize(
    ("url", "checksum", "message"),
    [
        ("file:///etc/passwd", CHECKSUM, "url must start with http"),
        ("http://127.0.0.1:9/", hashlib.sha256(DATA).hexdigest(), "checksum must be 'sha256:' and 64"),
        ("http://127.0.0.1:9/", "sha256:abc", "checksum must be"),
        ("http://127.0.0.1:9/", "crc32:00000000", "checksum must be"),
    ],
)
def test_malformed_arguments_are_refused_before_any_request(tmp_path, url, checksum, message):
    """Bug: a checksum in an unknown form that is never compared."""
    with pytest.raises(ValueError, match=message):
        download(url, tmp_path / "images.zip", checksum)
    assert _names(tmp_path) == []
