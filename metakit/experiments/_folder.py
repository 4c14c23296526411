"""A run's folder: the files in it, and how they are written."""

import contextlib
import errno
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from metakit.train import DiskFullError

# Raised whenever what a folder holds changes, so that no run is misread.
FORMAT = 2


class RunFolderError(ValueError):
    """A folder is no run, or none that can be used as it was asked.

    **Arguments:** a message that names the folder and says what to try.
    """


class RunFolder:
    """Paths of a run, and the files that are written while it goes on.

    - `record` (`run.json`): what was asked: the recipe and its options, or the experiment in words.
    - `classes` (`data.json`): the names of the classes it trained, validated and tested on.
    - `log` (`metrics.jsonl`), `checkpoints/`.
    - `test` (`test.json`), `scores` (`scores.npz`), `learner` (`learner.npz`): of a run that is finished.
    - `report` (`report.md`) and its pictures.

    **Arguments:** `path`, of a folder that exists or not.

    >>> RunFolder("runs/none").finished
    False
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.record = self.path / "run.json"
        self.classes = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.test = self.path / "test.json"
        self.scores = self.path / "scores.npz"
        self.learner = self.path / "learner.npz"
        self.report = self.path / "report.md"

    @property
    def finished(self) -> bool:
        """Whether it was tested."""
        return self.test.exists()

    def log(self, **record: Any) -> None:
        """Append one line to the log."""
        write(self.metrics, json.dumps(record) + "\n", append=True)

    def records(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        if not self.metrics.exists():
            return []
        # A full disk or a killed process cuts the last line; a resumed run logs it again.
        *whole, _ = self.metrics.read_text().split("\n")
        return [json.loads(line) for line in whole]

    def rewind(self, step: int) -> None:
        """Forget what was logged after the checkpoint that a resumed run continues from."""
        training = ("progress", "validated", "evaluation")
        kept = [r for r in self.records() if r.get("step", 0) <= step and r["event"] in training]
        write(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def read_record(self) -> dict[str, Any]:
        """What was asked of the run.

        **Raises:** `RunFolderError` where the folder is a file, empty, half made, of another version, or no run."""
        path = self.path
        if path.is_file():
            raise RunFolderError(f"{path} is a file. Give the run folder that holds it, {path.parent}.")
        if (path / "config.json").exists() and not self.record.exists():
            raise RunFolderError(f"{path} was written by metakit 0.1. {_what_to_do(path)}")
        if not self.record.exists():
            what = "does not exist" if not path.exists() else "holds no run.json"
            raise RunFolderError(f"{path} is no run folder: it {what}. A run is made by 'metakit train'.")
        record = read(self.record)
        if not isinstance(record, dict) or "format" not in record:
            raise RunFolderError(f"{self.record} is damaged: it holds no record of a run. Restore it from a copy.")
        if record["format"] != FORMAT:
            theirs = record.get("versions", {}).get("metakit", "(unknown)")
            raise RunFolderError(
                f"{path} was written by metakit {theirs}, in format {record['format']}; this one reads {FORMAT}. "
                "Use that version, or train again in another folder."
            )
        return record


def _what_to_do(path: pathlib.Path) -> str:
    """The command that makes a run of metakit 0.1 again."""
    with_it = "Evaluate and resume it with that version"
    settings = read(path / "config.json")
    if not isinstance(settings, dict) or "algorithm" not in settings:
        return f"{with_it}, or train again in another folder."
    command = f"metakit train {settings['algorithm']} --data {settings.get('data')} --seed {settings.get('seed', 0)}"
    return f"{with_it}, or train again in another folder: {command}, with the options that its report.md shows."


def read(path: pathlib.Path) -> Any:
    """A file of JSON; a `RunFolderError` where it is damaged."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}). Restore it from a copy, or train again.") from error


def write(path: pathlib.Path, text: str, *, append: bool = False) -> None:
    """Write a text file; a full disk is an error of its own, and what was there before is kept."""
    with room_for(path):
        if append:
            with path.open("a") as file:
                file.write(text)
        else:
            with replacing(path) as partial:
                partial.write_text(text)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name, without pickles; a full disk as in `write`."""
    with room_for(path), replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays by name; a `RunFolderError` where the file is damaged."""
    try:
        # Opened here, since NumPy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{path} is damaged ({error}). Restore it from a copy, or train again.") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place to write to that takes the name of `path` once it is whole."""
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def room_for(path: pathlib.Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = (
            f"no room left to write {path}. What its folder holds is intact: free some space, and continue with "
            "--resume if there are checkpoints."
        )
        raise DiskFullError(error.errno, message) from error
